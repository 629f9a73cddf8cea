# HTTP/2 where it is offered: a reverse proxy speaks it in front of the fake.

use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use IO::Socket::INET;
use IPC::Run;
use LlmGateway;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my ($nghttpx) = grep { -x } map { "$_/nghttpx" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/bin';
plan skip_all => 'nghttpx is not installed (Debian: nghttp2-proxy)' unless $nghttpx;

my $dir = abs_path(PostgreSQL::Test::Utils::tempdir);
my ($cert, $key, $access) = ("$dir/cert.pem", "$dir/key.pem", "$dir/access.log");
PostgreSQL::Test::Utils::run_log(
	[
		'openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-keyout', $key, '-out', $cert,
		'-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'
	]) or BAIL_OUT('openssl failed');

my $gw = LlmGateway->new(name => 'http2', conf => "llm_gateway.ca_file = '$cert'");
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $backend = $gw->fake->port;
PostgreSQL::Test::Utils::append_to_file("$dir/empty.conf", '');
my $proxy = IPC::Run::start(
	[
		$nghttpx, "--conf=$dir/empty.conf", "-f127.0.0.1,$port", "-b127.0.0.1,$backend", '--workers=1', '--no-ocsp',
		"--accesslog-file=$access", '--accesslog-format=$remote_port $alpn', $key, $cert
	],
	'<', \undef, '>', "$dir/proxy.log", '2>&1');

my $up = 0;
for (my $deadline = time + $LlmGateway::PATIENCE; !$up && time < $deadline; sleep 0.05)
{
	$up = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) ? 1 : 0;
}
ok($up, 'the proxy listens') or BAIL_OUT(slurp_file("$dir/proxy.log"));

$gw->sql("UPDATE llm_providers SET base_url = 'https://localhost:$port/v1' WHERE name = 'fake'");
$gw->add_models('fake', 'gpt-4o', 'slow-100');
my $s = $gw->session;
is($s->value("SELECT llm_complete('hi', model => 'gpt-4o')"), 'echo: hi', 'a call over TLS');
is($s->value("SELECT count(*) FILTER (WHERE response = 'echo: ' || idx) FROM llm_complete_batch(ARRAY(SELECT g::text FROM generate_series(1, 50) g), model => 'slow-100', max_concurrency => 50)"),
	'50', 'a batch over it');

my @lines = map { [split] } split /\n/, slurp_file($access);
is(scalar(@lines), 51, 'requests that the proxy saw');
is(scalar(grep { $_->[1] ne 'h2' } @lines), 0, 'all of them HTTP/2');
my %ports = map { $_->[0] => 1 } @lines;
is(scalar(keys %ports), 1, 'and all on one connection');

$proxy->signal('TERM');
IPC::Run::finish($proxy);
done_testing();
