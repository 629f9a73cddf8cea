# shellcheck shell=bash
# Debian releases in folders of their own, for scripts that run as root. Sourced after common.sh.
#
#   DEBIAN_MIRROR   where they are fetched; default: apt's own mirror

proxies=()
for name in http_proxy https_proxy no_proxy; do
    [[ -z ${!name:-} ]] || proxies+=("$name=${!name}")
done

mirror() {
    local uri
    # shellcheck disable=SC2016
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' \
        2>/dev/null | grep '^http' | head -n 1) || true
    echo "${DEBIAN_MIRROR:-${uri:-http://deb.debian.org/debian}}"
}

# in_root ROOT COMMAND...  in namespaces of its own, so that no mount or process outlives it
in_root() {
    local root=$1
    shift
    # shellcheck disable=SC2016
    unshare --mount --pid --ipc --fork --kill-child bash -ec '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=755 dev "$root/dev"
        for node in null zero full random urandom tty; do
            : >"$root/dev/$node"
            mount --bind "/dev/$node" "$root/dev/$node"
        done
        ln -s /proc/self/fd "$root/dev/fd"
        mkdir "$root/dev/shm"
        mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
        cp /etc/resolv.conf /etc/hosts "$root/etc/"
        exec chroot "$root" "$@"' bash "$root" \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        LANG=C.UTF-8 CI="${CI:-}" PROVE_FLAGS="${PROVE_FLAGS:-}" \
        LLM_GATEWAY_CFLAGS="${LLM_GATEWAY_CFLAGS:-}" LLM_GATEWAY_VARIANT="${LLM_GATEWAY_VARIANT:-}" \
        "${proxies[@]}" "$@"
}

# bootstrap RELEASE ROOT PACKAGES  a minimal Debian
bootstrap() {
    rm -rf "$2"
    # bookworm's debootstrap does not know forky yet
    unshare --mount --pid --fork --kill-child \
        debootstrap --variant=minbase --include="$3" "$1" "$2" "$(mirror)" \
        "$([[ $1 == forky ]] && echo sid || echo "$1")"
    # a mirror may be a snapshot: signatures count, dates do not
    {
        echo 'Acquire::Check-Valid-Until "false";'
        apt-config dump | grep -E '^Acquire::https?::Proxy' || true
    } >"$2/etc/apt/apt.conf.d/00mirror"
}

# only_programs ROOT  what is installed there starts no services and leaves out its documentation
only_programs() {
    printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
    chmod +x "$1/usr/sbin/policy-rc.d"
    printf 'path-exclude=/usr/share/%s/*\n' doc man info locale >"$1/etc/dpkg/dpkg.cfg.d/no-documentation"
}

fetch_failed() {
    grep -qE "Failed (to fetch|getting release file)|Couldn't (download|retrieve)|Temporary failure|(Could not|Unable to) (resolve|connect|fetch)|Connection (failed|timed out)" "$1"
}

# with_retries LOG COMMAND...  again after a failure to fetch. Sets $outcome: made, unfetched or
# failed. Not to be called in a condition, which would turn off set -e within COMMAND.
# shellcheck disable=SC2034
with_retries() {
    local log=$1 attempt status
    shift
    for attempt in 1 2 3; do
        ((attempt == 1)) || sleep $((attempt * 15))
        set +e
        (set -e; "$@") >"$log" 2>&1 </dev/null
        status=$?
        set -e
        outcome=made
        ((status)) || return 0
        outcome=failed
        fetch_failed "$log" || return 0
        outcome=unfetched
    done
}
