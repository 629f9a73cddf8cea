# shellcheck shell=bash
# What the scripts share: packages, the choice of PostgreSQL, a build outside
# the checkout and throw-away clusters. Sourced, never run.
#
#   PG_CONFIG            the PostgreSQL to build for; default: the newest of Debian's
#   LLM_GATEWAY_CFLAGS   further compiler flags, e.g. -DUSE_ASSERT_CHECKING
#   LLM_GATEWAY_VARIANT  a name: a build directory of its own, for such flags
#   LLM_GATEWAY_BUILD    the build directory itself
#   LLM_GATEWAY_SERVER_BIN   where to start servers from instead of PostgreSQL's own directory

supported_majors='15 16 17 18'
build_packages=(gcc make libc6-dev libcurl4-openssl-dev rsync)
test_packages=(perl libipc-run-perl python3 openssl nghttp2-proxy libfaketime)

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# each script's first comment is its help
case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{s/^# \{0,1\}//p}' "$checkout/script/${0##*/}"
        exit
        ;;
esac
cd /    # the cluster's user may be unable to read the checkout

export LC_ALL=C.UTF-8    # clusters in UTF-8, messages in English
unset PGSERVICE PGOPTIONS PGHOSTADDR PGSSLMODE PGPORT PGDATA

settings=()    # more lines for postgresql.conf of the clusters to be started
clusters=()    # data directories of running servers
scratch=()     # what else goes away at the end

step() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

cleanup() {
    local status=$? item
    trap '' INT TERM
    for item in "${clusters[@]}"; do
        as_cluster_user "$server_bin/pg_ctl" -D "$item" -m fast -w stop >/dev/null 2>&1 || true
    done
    for item in "${scratch[@]}"; do
        rm -rf "$item"
    done
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: log in as root, or install sudo"
    fi
}

# PostgreSQL refuses to run as root: root uses the account of Debian's package.
cluster_user() { if ((EUID == 0)); then echo postgres; else id -un; fi; }

as_cluster_user() {
    if ((EUID == 0)); then
        runuser -u postgres -- env -u TMPDIR HOME=/var/lib/postgresql "$@"
    else
        "$@"
    fi
} 8>&- 9>&-    # a server must not inherit our locks

cache_dir() {
    if ((EUID == 0)); then
        echo "${XDG_CACHE_HOME:-/var/cache}/llm_gateway"
    else
        echo "${XDG_CACHE_HOME:-$HOME/.cache}/llm_gateway"
    fi
}

# logged LOG COMMAND...  runs it quietly; when it fails, shows the end of the log
logged() {
    local log=$1 status=0
    shift
    "$@" >"$log" 2>&1 </dev/null || status=$?
    ((status)) || return 0
    tail -n 40 "$log" >&2
    printf 'error: failed: %s\n  the whole log: %s\n' "$*" "$log" >&2
    return "$status"
}

# lock FD DIRECTORY  until we end, or close FD; a second run waits here
lock() {
    eval "exec $1<\"\$2\""
    flock -n "$1" || {
        step "waiting for another run on $2"
        flock "$1"
    }
}

##
## Packages
##

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# need PACKAGE...  installs those that are missing
need() {
    local package missing=() no_cluster='' log attempt status=0
    for package; do
        installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "these Debian packages are needed: ${missing[*]}"
    step "installing ${missing[*]}"
    as_root true

    # without this Debian makes and starts a cluster that nobody asked for
    if ! installed postgresql-common; then
        no_cluster=/etc/postgresql-common/createcluster.d/llm_gateway.conf
        as_root mkdir -p "${no_cluster%/*}"
        echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
    fi
    log=$(mktemp /tmp/llm_gateway.apt.XXXXXX)
    for attempt in 1 2 3; do
        ((attempt == 1)) || sleep $((attempt * 15))
        status=0
        # shellcheck disable=SC2016
        logged "$log" as_root env DEBIAN_FRONTEND=noninteractive sh -ec '
            apt-get -q -o Acquire::Retries=3 update
            apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 \
                -o Dpkg::Options::=--force-confold --no-install-recommends install "$@"' sh "${missing[@]}" || status=$?
        ((status)) || break
    done
    [[ -z $no_cluster ]] || as_root rm -f "$no_cluster"
    ((status == 0)) || die "could not install packages"
    rm -f "$log"
}

# newest_postgres PROGRAM  the newest supported major of Debian's that has it
newest_postgres() {
    local major newest=''
    for major in $supported_majors; do
        [[ ! -x /usr/lib/postgresql/$major/bin/$1 ]] || newest=$major
    done
    echo "$newest"
}

# choose_postgres  sets $pg_config, $bindir and $pg_major
choose_postgres() {
    local major
    if [[ -n ${PG_CONFIG:-} ]]; then
        pg_config=$(command -v "$PG_CONFIG") || die "PG_CONFIG: there is no program $PG_CONFIG"
    else
        major=$(newest_postgres pg_config)
        if [[ -z $major ]]; then
            need postgresql
            major=$(newest_postgres postgres)
            [[ -n $major ]] || die "this Debian has no PostgreSQL of $supported_majors"
        fi
        need "postgresql-$major" "postgresql-server-dev-$major"
        pg_config=/usr/lib/postgresql/$major/bin/pg_config
    fi
    bindir=$("$pg_config" --bindir)
    server_bin=${LLM_GATEWAY_SERVER_BIN:-$bindir}
    pg_major=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
    [[ " $supported_majors " == *" $pg_major "* ]] ||
        die "$pg_config is of PostgreSQL $pg_major; supported are $supported_majors"
}

##
## Build
##

# checkout_files  the checkout's files, each name ended by a NUL
checkout_files() {
    local file
    {
        git -c safe.directory='*' -C "$checkout" ls-files -coz --exclude-standard 2>/dev/null ||
            find "$checkout" -name .git -prune -o -type f ! -name .synced ! -name '*.[oad]' \
                ! -name '*.so' -printf '%P\0'
    } | while IFS= read -r -d '' file; do
        [[ ! -e $checkout/$file ]] || printf '%s\0' "$file"
    done | LC_ALL=C sort -z
}

# sync_checkout DIR [OWNER]  makes DIR's copy current. What differs is written with a new time, the
# rest is not touched: make compiles what changed, even where two checkouts take turns.
sync_checkout() {
    local names=$1/.synced owner=()
    ((EUID != 0 || $# < 2)) || owner=(-og "--chown=$2:$(id -gn "$2")")
    checkout_files >"$names.new"
    if [[ -e $names ]]; then
        LC_ALL=C comm -z -23 "$names" "$names.new" | (cd "$1" && xargs -0r rm -f --)
    fi
    rsync -rlpc "${owner[@]}" --from0 --files-from="$names.new" "$checkout/" "$1/"
    mv "$names.new" "$names"
}

make_extension() {
    as_cluster_user make -C "$build" --no-print-directory -s with_llvm=no PG_CONFIG="$pg_config" "$@"
}

# build  compiles the checkout; sets $build and $logs
build() {
    local base flags="-Werror ${LLM_GATEWAY_CFLAGS:-}"
    base=/var/tmp/llm_gateway-$(cluster_user)
    build=${LLM_GATEWAY_BUILD:-$base/$pg_major${LLM_GATEWAY_VARIANT:+-$LLM_GATEWAY_VARIANT}}
    logs=$build/logs
    if [[ -z ${LLM_GATEWAY_BUILD:-} ]]; then
        mkdir -p "$base"
        [[ -O $base && ! -L $base ]] || die "$base belongs to somebody else"
    fi
    mkdir -p "$logs"
    lock 8 "$build"
    sync_checkout "$build" "$(cluster_user)"
    ((EUID != 0)) || chown postgres: "$build" "$logs"
    step "building for PostgreSQL $pg_major${LLM_GATEWAY_VARIANT:+ ($LLM_GATEWAY_VARIANT)}"

    # objects made with other flags do not fit
    if [[ "$pg_config $flags" != "$(cat "$build/.flags" 2>/dev/null)" ]]; then
        logged "$logs/clean.log" make_extension clean
        echo "$pg_config $flags" >"$build/.flags"
    fi
    logged "$logs/build.log" make_extension -j2 COPT="$flags" all
}

# install_extension  if what is installed differs; the installation stays locked until we end
install_extension() {
    local file libdir sharedir
    libdir=$("$pg_config" --pkglibdir)
    sharedir=$("$pg_config" --sharedir)/extension
    lock 9 "$libdir"
    for file in "$build"/*.so "$build"/*.control "$build"/*--*.sql; do
        case $file in
            *.so) cmp -s "$file" "$libdir/${file##*/}" ;;
            *) cmp -s "$file" "$sharedir/${file##*/}" ;;
        esac && continue
        step "installing into PostgreSQL $pg_major"
        as_root true    # says so here, and not in the log, when it cannot
        logged "$logs/install.log" as_root make -C "$build" --no-print-directory -s with_llvm=no \
            PG_CONFIG="$pg_config" install
        return
    done
}

# set_up  packages, build, install: all that a script needs before it starts a server
set_up() {
    need "${build_packages[@]}" "${test_packages[@]}"
    choose_postgres
    build
    install_extension
}

##
## Throw-away cluster
##

# start_cluster [NAME=VALUE...]  with these in the server's environment, and the lines of $settings
# in postgresql.conf; reached through a socket in a directory of its own only. Sets $cluster, and
# PGHOST, PGPORT, PGUSER for clients.
start_cluster() {
    cluster=$(as_cluster_user mktemp -d /tmp/llm_gateway.XXXXXX)
    scratch+=("$cluster")
    step "starting a throw-away cluster in $cluster"
    logged "$logs/initdb.log" as_cluster_user "$bindir/initdb" -D "$cluster/data" \
        --no-sync -A trust -U postgres -E UTF8 --locale=C
    printf '%s\n' "shared_preload_libraries = 'llm_gateway'" "listen_addresses = ''" \
        "unix_socket_directories = '$cluster'" 'fsync = off' "${settings[@]}" |
        as_cluster_user tee -a "$cluster/data/postgresql.conf" >/dev/null
    clusters+=("$cluster/data")
    as_cluster_user env "$@" "$server_bin/pg_ctl" -D "$cluster/data" -l "$cluster/server.log" -w start \
        >"$logs/start.log" 2>&1 </dev/null || {
        tail -n 30 "$cluster/server.log" >&2
        die "the server does not start"
    }
    export PGHOST=$cluster PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
}
