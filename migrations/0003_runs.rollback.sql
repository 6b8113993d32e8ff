drop table if exists runs;
