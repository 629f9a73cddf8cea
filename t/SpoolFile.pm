package SpoolFile;

=head1 NAME

SpoolFile - a spool as a former start of the server left it, for TAP tests

=head1 SYNOPSIS

    my $spool = SpoolFile->new($gw);            # while the server runs
    $spool->note(7, { charged => [ [ 1, '2026-11-01', 'team' ] ], expected_cost => 5 });
    $spool->end(7, { last => { cost => 4, source => 'usage' } });
    $gw->node->stop;
    $spool->write;
    $gw->node->start;                           # its worker books what is there

The format is that of src/spool.h and src/ledger_record.h: what a call writes, byte for byte, so that
the ledger is tested with requests that no provider could be made to answer.

=cut

use strict;
use warnings;

use Carp qw(croak);
use Time::Local qw(timegm);

use constant SEGMENT => 1 << 20;
use constant MAGIC   => 0x4C475331;

my %record  = (note => 1, end => 2, prompt => 3, response => 4, keep => 5);
my %status  = (ok => 0, error => 1, cached => 2, cancelled => 3, unknown => 4, rejected => 5);
my %source  = (none => 0, estimate => 1, usage => 2);
my %default = (role => 'postgres', role_oid => 10, task => 'default', priority => 'normal', estimate => -1, creator => 0);

my @crc;
for my $byte (0 .. 255)
{
	my $sum = $byte;
	$sum = $sum & 1 ? ($sum >> 1) ^ 0x82F63B78 : $sum >> 1 for 1 .. 8;
	push @crc, $sum;
}

sub _crc32c
{
	my $sum = 0xFFFFFFFF;
	$sum = $crc[ ($sum ^ $_) & 0xFF ] ^ ($sum >> 8) for unpack 'C*', $_[0];
	return $sum ^ 0xFFFFFFFF;
}

=head1 METHODS

=head2 new($gw, [$database])

For that database and the extension that is in it now; %{$result->{request}} is what requests have
unless they say otherwise.

=cut

sub new
{
	my ($class, $gw, $database) = @_;
	my $s = $gw->session($database);
	my $oid = $s->value('SELECT oid FROM pg_database WHERE datname = current_database()');
	return bless {
		directory => $gw->node->data_dir . "/llm_gateway/spool/$oid",
		extension => $s->value(q{SELECT oid FROM pg_extension WHERE extname = 'llm_gateway'}),
		id        => $s->value('SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint'),
		salt      => 81985529216486895,
		bytes     => '',
		request   => {%default}
	}, $class;
}

=head2 timestamp($text)

'2026-11-01' or '2026-11-01 12:00:00', in UTC, as the server has it: microseconds since 2000.

=cut

sub timestamp
{
	my ($text) = @_;
	my ($year, $month, $day, $hour, $minute, $second) = $text =~ /^(\d+)-(\d+)-(\d+)(?: (\d+):(\d+):(\d+))?$/
	  or croak "no timestamp: $text";
	return (timegm($second // 0, $minute // 0, $hour // 0, $day, $month - 1, $year) - 946684800) * 1_000_000;
}

sub _text { return defined $_[0] ? pack('l<', length $_[0]) . $_[0] : pack 'l<', -1 }

sub _request
{
	my ($self, $given) = @_;
	my %r = (created_at => '2026-11-20 12:00:00', %{ $self->{request} }, %{ $given // {} });
	return pack('q< L< L< C L< q< C x16 q<',
		timestamp($r{created_at}), $r{extension} // $self->{extension}, $r{creator}, 0, $r{role_oid}, 0, 0, $r{estimate})
	  . join '', map { _text($r{$_}) } qw(role application_name task task_source priority optimize requested_model tags downgraded_by downgraded_from);
}

sub _outcome
{
	my (%o) = (cost => -1, source => 'none', input => 10, output => 5, %{ $_[0] });
	return pack('C C l< q< C q<5 q< C', 0, $o{cancelled} // 0, 200, 1000, 1, $o{input}, 0, 0, $o{output}, 0, $o{cost}, $source{ $o{source} })
	  . _text($o{message});
}

=head2 note($id, \%what), end($id, \%what), keep($id, \%what), record($type, $id, $payload)

Add a record.  An attempt's keys: attempt (1), provider, model, model_tier, started_at, expected_cost,
charged (for each budget a reference to [ id, period, name ]), previous (the outcome of the attempt
before it), request.  An end's: status (ok), attempts (1), last (an outcome), request (nothing was
noted), provider, model, model_tier (of a cached answer).  A kept answer's: key
(at most 16 bytes), created_at, expires_at, response, tool_calls, embedding (numbers) and dimensions (their
number), scope (at most 16 bytes).  An outcome's: cost in nano-dollars, source,
input, output, cancelled, message.

=cut

sub record
{
	my ($self, $type, $id, $payload) = @_;
	my $offset = length $self->{bytes};
	my $rest = pack('L< L< q< Q<', length $payload, $record{$type} // $type, $id, $offset) . $payload;
	$self->{bytes} .= pack('L< L<', MAGIC, _crc32c(pack('Q<', $self->{salt}) . $rest)) . $rest;
	$self->{bytes} .= "\0" x (-length($self->{bytes}) % 8);
	return;
}

sub note
{
	my ($self, $id, $what) = @_;
	my %a = (attempt => 1, provider => 'fake', model => 'gpt-4o', model_tier => 'standard', started_at => '2026-11-20 12:00:00',
		expected_cost => -1, %{ $what // {} });
	my $payload = pack('l< Q<', 0, 99) . $self->_request($a{request});
	$payload .= pack('l< q< q<', $a{attempt}, timestamp($a{started_at}), 0) . join '', map { _text($_) } @a{qw(provider model model_tier)};
	$payload .= pack 'q<3', 10, 256, $a{expected_cost};
	my @charged = @{ $a{charged} // [] };
	$payload .= pack 'C', scalar @charged;
	$payload .= pack('q< q<', $_->[0], timestamp($_->[1])) . _text($_->[2]) for @charged;
	$payload .= $a{previous} ? "\1" . _outcome($a{previous}) : "\0";
	return $self->record('note', $id, $payload);
}

sub end
{
	my ($self, $id, $what) = @_;
	my %e = (status => 'ok', attempts => 1, %{ $what // {} });
	my $payload = "\0";
	$payload = "\1" . $self->_request($e{request}) . join '', map { _text($_) } @e{qw(provider model model_tier)} if $e{request};
	$payload .= $e{last} ? "\1" . _outcome($e{last}) : "\0";
	$payload .= pack('C C', $status{ $e{status} }, 0) . _text('stop') . pack('l< C', $e{attempts}, 0) . _text(undef)
	  . pack('C q<3', 0, 2000, -1, -1);
	return $self->record('end', $id, $payload);
}

sub _embedding
{
	my ($k) = @_;
	return pack 'l<', 0 unless $k->{embedding};
	return pack('l<', $k->{dimensions} // scalar @{ $k->{embedding} }) . pack('f<*', @{ $k->{embedding} }) . pack('a16', $k->{scope});
}

sub keep
{
	my ($self, $id, $what) = @_;
	my %k = (key => 'k', created_at => '2026-11-20 12:00:00', expires_at => '2126-11-20 12:00:00', response => 'kept', %{ $what // {} });
	return $self->record('keep', $id, pack('a16 q< q<', $k{key}, timestamp($k{created_at}), timestamp($k{expires_at}))
		  . _text($k{response}) . _text($k{tool_calls}) . _embedding(\%k));
}

=head2 write

Makes the files; the server should be down.  Those that are there stay.

=cut

sub write
{
	my ($self) = @_;
	my $top = $self->{directory} =~ s{/[^/]*$}{}r;
	my $directory = sprintf '%s/%016X-%016X', $self->{directory}, $self->{id}, $self->{salt};
	mkdir $_, 0700 for $top =~ s{/[^/]*$}{}r, $top, $self->{directory}, $directory;
	for (my $at = 0; $at < length $self->{bytes}; $at += SEGMENT)
	{
		my $path = sprintf '%s/%08X', $directory, $at / SEGMENT;
		my $bytes = substr $self->{bytes}, $at, SEGMENT;
		open my $file, '>:raw', $path or croak "$path: $!";
		print {$file} $bytes, "\0" x (SEGMENT - length $bytes);
		close $file or croak "$path: $!";
	}
	return;
}

1;
