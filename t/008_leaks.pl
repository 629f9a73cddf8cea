# A backend that makes calls all day does not grow.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway;

# LLM_GATEWAY_LONG: as many over HTTP as without it
my $long = $ENV{LLM_GATEWAY_LONG};

my $gw = LlmGateway->new(name => 'leaks', fake => { journal => 10 });
my ($s, $pid);
$gw->sql(q{SELECT count(*) FROM llm_add_provider('mock')});
$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 0});
$gw->add_models('fake', qw(gpt-4o status-400 malformed reset-before));
$gw->sql(q{INSERT INTO llm_providers (name, kind, options) VALUES ('broken', 'mock', '{"error": "invalid_request"}')});
$gw->add_models('broken', 'm-broken');

sub rss
{
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	return $kb;
}

sub descriptors
{
	opendir my $dir, "/proc/$pid/fd" or die "/proc/$pid/fd: $!";
	my $n = grep { /^\d+$/ } readdir $dir;
	closedir $dir;
	return $n;
}

# Runs a statement that makes calls in a new session, which has not grown for another reason: first
# to warm up, then again and again.  What it prints is always the same, and memory is as after the
# warm-up.
sub steady_ok
{
	my ($name, $warm, $times, $sql, $want) = @_;
	my $wrong = 0;
	$s = $gw->session;
	$pid = $s->pid;
	for (1 .. $warm)
	{
		my $r = $s->run($sql);
		$wrong++ if $r->{out} ne $want;
	}
	my ($rss, $fds) = (rss(), descriptors());
	for (1 .. $times)
	{
		my $r = $s->run($sql);
		$wrong++ if $r->{out} ne $want;
	}
	is($wrong, 0, "$name: answers");
	my $grown = rss() - $rss;
	note("$name: from $rss kB by $grown kB");
	cmp_ok($grown, '<', 1024, "$name: memory");
	cmp_ok(descriptors(), '<=', $fds + 1, "$name: descriptors");
	return;
}

steady_ok('100,000 calls', 1, 9, q{SELECT count(llm_complete('What is ' || g, model => 'mock-standard', params => '{"seed": 1}')) FROM generate_series(1, 10000) g}, '10000');
steady_ok('calls with details', 2, 4, q{SELECT count(d.response) FROM generate_series(1, 2000) g, llm_complete_detail('What is ' || g, model => 'mock-standard') d}, '2000');

steady_ok('calls in batches', 2, 8, q{SELECT count(response) FROM llm_complete_batch(array(SELECT 'What is ' || g / 2 FROM generate_series(1, 2000) g), model => 'mock-standard', max_concurrency => 50)}, '2000');
steady_ok('answers of 20 kB', 2, 4, q{SELECT sum(length(llm_complete(repeat('x', 20000), model => 'mock-standard'))) FROM generate_series(1, 200) g}, 200 * 20015);
steady_ok('errors, caught', 2, 4, q{SELECT count(error_class) FROM generate_series(1, 2000) g, llm_complete_detail('What is ' || g, model => 'm-broken')}, '2000');
steady_ok('errors, raised', 300, 700, q{SELECT llm_complete('x', model => 'm-broken')}, '');
steady_ok('errors, in subtransactions', 2, 4,
	q{DO $$ BEGIN FOR i IN 1 .. 1000 LOOP BEGIN PERFORM llm_complete('x', model => 'm-broken'); EXCEPTION WHEN SQLSTATE 'LG008' THEN NULL; END; END LOOP; END $$}, '');
steady_ok('changes of the configuration', 2, 4,
	q{DO $$ BEGIN FOR i IN 1 .. 300 LOOP UPDATE llm_models SET quality = i % 100 WHERE name = 'mock-economy'; PERFORM llm_complete('x', model => 'mock-standard'); END LOOP; END $$}, '');

my $chunk = $long ? 10000 : 500;
steady_ok($chunk * 10 . ' calls over HTTP', 1, 9, qq{SELECT count(llm_complete('What is ' || g, model => 'gpt-4o')) FROM generate_series(1, $chunk) g}, $chunk);
steady_ok('batches over HTTP', 2, 4, q{SELECT count(response) FROM llm_complete_batch(array(SELECT 'What is ' || g FROM generate_series(1, 400) g), model => 'gpt-4o', max_concurrency => 20)}, '400');
for my $model (qw(status-400 malformed reset-before))
{
	steady_ok("$model over HTTP", 2, 5, qq{SELECT count(error_class) FROM generate_series(1, 200) g, llm_complete_detail('What is ' || g, model => '$model')}, '200');
}
is($gw->fake->stats->{internal_errors}, 0, 'the fake itself is sound');
$gw->no_crash_ok;

done_testing();
