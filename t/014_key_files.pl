# Keys in files: file:NAME in llm_gateway.secret_directory.

use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use Fcntl qw(:mode);
use LlmGateway qw(error_ok);
use POSIX qw(mkfifo);
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = abs_path(PostgreSQL::Test::Utils::tempdir);
my $gw = LlmGateway->new(name => 'key_files', conf => "llm_gateway.secret_directory = '$dir'");
$gw->add_models('fake', 'gpt-4o');
my $s = $gw->session;
my $call = q{SELECT llm_complete('hi', model => 'gpt-4o')};

sub put
{
	my ($name, $content) = @_;
	open my $f, '>', "$dir/$name" or die "$name: $!";
	print $f $content;
	close $f;
	return;
}

# the key of the next request that reaches the provider
sub sent_key
{
	my $seen = $gw->requests(sub { $s->run($call) });
	return @$seen ? $seen->[0]{headers}{authorization} : undef;
}

sub refer
{
	my ($reference) = @_;
	return $gw->admin->run("UPDATE llm_providers SET api_key = '$reference' WHERE name = 'fake'");
}

put('openai', "file-key-7rTq-91\n");
refer('file:openai');
is(sent_key(), 'Bearer file-key-7rTq-91', 'the line in the file, without its line break');
put('openai', "file-key-8sUr-02");
is(sent_key(), 'Bearer file-key-8sUr-02', 'a key that was replaced is used at once');
put('crlf', "file-key-9tVs-13\r\n");
refer('file:crlf');
is(sent_key(), 'Bearer file-key-9tVs-13', 'CRLF');
symlink 'openai', "$dir/link" or die $!;
refer('file:link');
is(sent_key(), 'Bearer file-key-8sUr-02', 'a symbolic link, as orchestrators mount secrets');

# what cannot be a key: a candidate that is not tried, with the reference's name and never its content
put('empty', '');
put('blank', "   \n");
put('two', "first-line-key\nsecond-line-key\n");
put('large', 'k' x 9000);
put('nul', "before\0after");
put('control', "tab\tkey-here");
mkdir "$dir/directory" or die $!;
mkfifo("$dir/pipe", 0600) or die $!;
put('unreadable', 'unreadable-key-1');
chmod 0, "$dir/unreadable";
my %wrong = (
	missing   => qr/key file "missing" cannot be read: No such file/,
	empty     => qr/key file "empty" is empty/,
	blank     => qr/key file "blank" is blank/,
	two       => qr/key file "two" has several lines/,
	large     => qr/key file "large" is longer than 8 kB/,
	nul       => qr/key file "nul" contains a NUL byte/,
	control   => qr/key file "control" contains a control character/,
	directory => qr/key file "directory" is not a regular file/,
	pipe      => qr/key file "pipe" is not a regular file/);
$wrong{unreadable} = qr/key file "unreadable" cannot be read: Permission denied/ if $> != 0;
for my $name (sort keys %wrong)
{
	refer("file:$name");
	my $r;
	my $seen = $gw->requests(sub { $r = $s->run($call) });
	error_ok($r, { sqlstate => 'LG009', message => $wrong{$name} }, $name);
	is(scalar @$seen, 0, "$name: nothing was sent");
	unlike($r->{err} // '', qr/line-key|kkkk|before|unreadable-key/, "$name: the content is not shown");
}

# references that would leave the directory
for my $reference ('file:../openai', 'file:/etc/passwd', 'file:.hidden', 'file:a/b', 'file:')
{
	error_ok(refer($reference), { sqlstate => '22023', message => qr/must be a reference to a key/ }, $reference);
}

# no directory, no files; and nobody but a superuser sets it, or sees it
refer('file:openai');
$gw->sql("ALTER SYSTEM SET llm_gateway.secret_directory = ''");
$gw->sql('SELECT pg_reload_conf()');
my $t = $gw->session;
error_ok($t->run($call), { sqlstate => 'LG009', message => qr/llm_gateway.secret_directory is not set/ }, 'no directory');
$gw->sql("CREATE ROLE caller LOGIN; SELECT llm_grant('caller', 'admin')");
my $c = $gw->session('postgres', user => 'caller');
error_ok($c->run("SET llm_gateway.secret_directory = '/etc'"), { sqlstate => '42501' }, 'a gateway administrator does not set it');
error_ok($c->run('SHOW llm_gateway.secret_directory'), { sqlstate => '42501' }, 'nor see it');

done_testing();
