# Periods of budgets: hours, days, weeks and months of time zones, compared with date_trunc().
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils qw(run_command);
use Test::More;

my $library = PostgreSQL::Test::Utils::tempdir_short() . '/budget_period';
my ($includes) = run_command([ 'pg_config', '--includedir-server' ]);
my $src = "$FindBin::Bin/../src";

system($ENV{CC} || 'cc', qw(-shared -fPIC -O2), "-I$src", "-I$includes", "$FindBin::Bin/model/budget_period_sql.c",
	"$src/budget_period.c", '-o', "$library.so") == 0
  or die 'could not compile budget_period.c';

my $node = PostgreSQL::Test::Cluster->new('periods');
$node->init;
$node->start;

# The number that a query counts, or its text; every statement says its moments in UTC.
sub value
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', "SET TimeZone = 'UTC'; $sql");
}

$node->safe_psql('postgres', <<"SQL");
CREATE FUNCTION period_bound(text, text, timestamptz, bool) RETURNS timestamptz STRICT IMMUTABLE LANGUAGE c AS '$library';
CREATE FUNCTION period_name(text) RETURNS text STRICT LANGUAGE c AS '$library';
CREATE FUNCTION period(text, text, timestamptz) RETURNS text LANGUAGE sql
	RETURN to_char(period_bound(\$1, \$2, \$3, false), 'YYYY-MM-DD HH24:MI') || ' ' || to_char(period_bound(\$1, \$2, \$3, true), 'YYYY-MM-DD HH24:MI');

-- whole: offsets are whole hours; simple: no clock is set back to before a midnight
CREATE TABLE zones (zone text, whole bool, simple bool);
INSERT INTO zones VALUES ('UTC', true, true), ('Europe/Berlin', true, true), ('America/New_York', true, true),
	('Australia/Lord_Howe', false, true), ('America/Sao_Paulo', true, true), ('Asia/Kolkata', false, true),
	('Asia/Kathmandu', false, true), ('Pacific/Chatham', false, true), ('Africa/Casablanca', true, true),
	('America/Havana', true, false), ('America/St_Johns', false, false), ('Pacific/Apia', true, false);

-- years with all changes of those clocks, and by steps that meet every hour and day a long time around
CREATE TABLE moments AS
	SELECT at FROM generate_series('2010-12-30 00:00+00', '2012-01-03 00:00+00', interval '30 minutes') at
	UNION SELECT at FROM generate_series('2017-09-25 00:00+00', '2018-03-15 00:00+00', interval '30 minutes') at
	UNION SELECT at FROM generate_series('1996-02-01 00:07+00', '2044-04-01 00:00+00', interval '61 hours 13 minutes 7.000001 seconds') at;
CREATE TABLE periods AS
	SELECT zone, whole, simple, unit, at, period_bound(unit, zone, at, false) AS low, period_bound(unit, zone, at, true) AS high
	FROM zones, moments, unnest(ARRAY['hour', 'day', 'week', 'month']) unit;
SQL

is(value('SELECT string_agg(period_name(name), \' \' ORDER BY n) FROM unnest(ARRAY[\'hour\', \'day\', \'week\', \'month\', \'year\', \'Day\', \'\']) WITH ORDINALITY AS t (name, n)'),
	'hour day week month', 'periods have names, and nothing else is one');
cmp_ok(value('SELECT count(*) FROM periods'), '>', 1_000_000, 'there are many moments');
is(value('SELECT count(*) FROM periods WHERE low > at OR high <= at'), 0, 'every moment is in its period');

# hours may begin in the middle of one where an offset changes by a part of an hour
is(value(q{SELECT count(*) FROM periods WHERE unit = 'hour' AND (low <> date_trunc('hour', at, zone) OR high <> low + interval '1 hour')}),
	0, 'hours begin where date_trunc() says');
is(value(q{SELECT count(*) FROM periods WHERE simple AND unit <> 'hour' AND low <> date_trunc(unit, at, zone)}),
	0, 'days, weeks and months begin where date_trunc() says');
is(value(q{SELECT count(*) FROM periods WHERE simple AND unit <> 'hour'
	AND high <> (date_trunc(unit, at AT TIME ZONE zone) + ('1 ' || unit)::interval) AT TIME ZONE zone}),
	0, 'and end where the next one begins');
is(value(q{SELECT count(*) FROM periods WHERE NOT simple AND unit <> 'hour' AND low <> date_trunc(unit, at, zone)
	AND NOT at < date_trunc(unit, at, zone)}),
	0, 'what date_trunc() says is not used where it lies in the future');
cmp_ok(value(q{SELECT count(*) FROM periods WHERE NOT simple AND at < date_trunc(unit, at, zone)}), '>', 0, 'which happens');

for (['SELECT DISTINCT zone, unit, low, high FROM periods WHERE whole OR unit <> \'hour\'', 'periods'])
{
	my ($query, $what) = @$_;
	is(value("SELECT count(*) FROM ($query) p WHERE period_bound(unit, zone, high, false) <> high"), 0, "$what follow on one another");
	is(value("SELECT count(*) FROM ($query) p WHERE period_bound(unit, zone, high - interval '1 us', false) <> low"), 0, "$what last to their end");
	is(value("SELECT count(*) FROM ($query) p WHERE period_bound(unit, zone, low, true) <> high"), 0, "$what are the same from their beginning");
}

# period, zone, moment, from, to: all in UTC
for (
	[ 'day', 'Europe/Berlin', '2026-03-29 12:00+00', '2026-03-28 23:00', '2026-03-29 22:00', 'a day of 23 hours' ],
	[ 'day', 'Europe/Berlin', '2026-10-25 12:00+00', '2026-10-24 22:00', '2026-10-25 23:00', 'a day of 25 hours' ],
	[ 'hour', 'Europe/Berlin', '2026-10-25 00:30+00', '2026-10-25 00:00', '2026-10-25 01:00', 'the first hour from two to three' ],
	[ 'hour', 'Europe/Berlin', '2026-10-25 01:30+00', '2026-10-25 01:00', '2026-10-25 02:00', 'the second hour from two to three' ],
	[ 'day', 'America/New_York', '2026-03-08 12:00+00', '2026-03-08 05:00', '2026-03-09 04:00', 'a day that begins before the clock is changed' ],
	[ 'day', 'America/Sao_Paulo', '2017-10-15 12:00+00', '2017-10-15 03:00', '2017-10-16 02:00', 'a day without a midnight' ],
	[ 'day', 'America/Sao_Paulo', '2017-10-15 02:59:59.999999+00', '2017-10-14 03:00', '2017-10-15 03:00', 'the day before it' ],
	[ 'day', 'America/Sao_Paulo', '2018-02-18 02:30+00', '2018-02-17 02:00', '2018-02-18 03:00', 'a day that ends an hour later' ],
	[ 'day', 'America/Havana', '2017-11-05 04:30+00', '2017-11-04 04:00', '2017-11-05 05:00', 'the hour after midnight that comes twice, first' ],
	[ 'day', 'America/Havana', '2017-11-05 05:30+00', '2017-11-05 05:00', '2017-11-06 05:00', 'and again' ],
	[ 'day', 'Pacific/Apia', '2011-12-30 09:59+00', '2011-12-29 10:00', '2011-12-30 10:00', 'the day before one that is left out' ],
	[ 'day', 'Pacific/Apia', '2011-12-30 10:00+00', '2011-12-30 10:00', '2011-12-31 10:00', 'the day after it' ],
	[ 'hour', 'Asia/Kolkata', '2026-01-01 00:15+00', '2025-12-31 23:30', '2026-01-01 00:30', 'an hour of a zone of half hours' ],
	[ 'hour', 'Australia/Lord_Howe', '2026-04-04 15:10+00', '2026-04-04 14:30', '2026-04-04 15:30', 'an hour after half of one came again' ],
	[ 'week', 'UTC', '2027-01-03 23:59:59.999999+00', '2026-12-28 00:00', '2027-01-04 00:00', 'a week of two years, to its Sunday' ],
	[ 'week', 'Europe/Berlin', '2026-03-29 22:00+00', '2026-03-29 22:00', '2026-04-05 22:00', 'a week from its Monday' ],
	[ 'month', 'Europe/Berlin', '2026-03-15 00:00+00', '2026-02-28 23:00', '2026-03-31 22:00', 'a month in which the clock is changed' ],
	[ 'month', 'UTC', '2024-02-29 23:59:59.999999+00', '2024-02-01 00:00', '2024-03-01 00:00', 'the last moment of a leap day' ],
	[ 'month', 'UTC', '1900-02-28 12:00+00', '1900-02-01 00:00', '1900-03-01 00:00', 'a year without a leap day' ],
	[ 'month', 'America/New_York', '2027-01-01 04:59+00', '2026-12-01 05:00', '2027-01-01 05:00', 'the last hours of a year' ])
{
	my ($period, $zone, $at, $from, $to, $what) = @$_;
	is(value("SELECT period('$period', '$zone', '$at')"), "$from $to", "$zone: $what");
}

# a clock that is wrong is no error
my $ends = q{unnest(ARRAY['4714-11-24 00:00+00 BC', '0001-01-01 00:00+00 BC', '294276-12-31 23:59:59.999999+00', 'infinity', '-infinity']::timestamptz[]) at,
	unnest(ARRAY['hour', 'day', 'week', 'month']) unit, zones};
is(value("SELECT count(*) FROM $ends WHERE period_bound(unit, zone, at, false) > at OR period_bound(unit, zone, at, true) < at"),
	0, 'the first and the last moment have periods');
is(value(q{SELECT period_bound('month', 'UTC', '294276-12-31 00:00+00', true)}), 'infinity', 'the last month has no end');

done_testing();
