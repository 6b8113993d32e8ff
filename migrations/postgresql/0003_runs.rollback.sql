drop table if exists run_counts;
drop table if exists runs;
drop function if exists count_runs_no_longer();
drop function if exists count_runs();
