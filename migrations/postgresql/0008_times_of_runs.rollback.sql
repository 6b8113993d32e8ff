drop function if exists not_before_the_last_run(text, text);
