drop trigger if exists run_is_used;
drop table if exists usage;
