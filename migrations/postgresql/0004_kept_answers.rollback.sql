drop table if exists kept_answers;
