drop index if exists runs_by_status;
drop index if exists runs_by_time;
drop trigger if exists run_is_no_longer_counted;
drop trigger if exists run_is_counted;
drop table if exists run_counts;
