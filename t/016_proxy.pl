# Which proxy is used: llm_gateway.proxy, never the environment's; and its password stays unseen.

use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use LlmGateway qw(error_ok);
use PostgreSQL::Test::Utils;
use Test::More;

my $trap = FakeProvider->new;
my $url = 'http://127.0.0.1:' . $trap->port;
my $gw = LlmGateway->new(
	name => 'proxy',
	env  => { map { $_ => $url } qw(http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY) });
$gw->add_models('fake', 'gpt-4o');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0; UPDATE llm_providers SET connect_timeout = '60 s'});
my $call = q{SELECT llm_complete('hi', model => 'gpt-4o')};

my $s = $gw->session;
is($s->value($call), 'echo: hi', "a call, with proxies in the server's environment");
is($trap->stats->{connections_total}, 0, 'goes to the provider itself');

my $p = $gw->session;
$p->run("SET llm_gateway.proxy = '$url'");
$p->run($call);
is(scalar @{ $trap->journal }, 1, 'llm_gateway.proxy is used');
is(scalar @{ $gw->fake->journal }, 1, 'instead of a direct connection');

my $password = 'proxy-Pw-55aQ';
$trap->down;
for my $proxy ("http://bob:$password\@127.0.0.1:" . $trap->port, "http://bob:$password\@does-not-exist.invalid:3128")
{
	my $t = $gw->session;
	$t->run("SET llm_gateway.proxy = '$proxy'");
	my $r = $t->run($call);
	error_ok($r, { sqlstate => 'LG004' }, 'a proxy that cannot be reached');
	unlike($r->{err}, qr/\Q$password\E/, 'its password is not shown');
}

my $bad = $gw->session;
error_ok($bad->run("SET llm_gateway.proxy = 'ftp://127.0.0.1:3128'"), { sqlstate => '22023' }, 'a scheme that is no proxy')
  or diag 'accepted';
$gw->sql('CREATE ROLE caller LOGIN');
my $c = $gw->session('postgres', user => 'caller');
error_ok($c->run("SET llm_gateway.proxy = '$url'"), { sqlstate => '42501' }, 'only superusers set it');
error_ok($c->run('SHOW llm_gateway.proxy'), { sqlstate => '42501' }, 'or see it');

done_testing();
