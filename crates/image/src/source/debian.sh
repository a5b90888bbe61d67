# The host's names and mmdebstrap's settings have no place in an image.
: > "$root/etc/resolv.conf"
echo sandbox > "$root/etc/hostname"
printf '127.0.0.1\tlocalhost sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
rm -rf "$root"/var/log/apt "$root"/var/log/dpkg.log "$root"/var/log/bootstrap.log \
    "$root"/var/log/alternatives.log "$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig/aux-cache
