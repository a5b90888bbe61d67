# The user that commands run as. Its sudo asks for nothing: the sandbox is the boundary.
chroot "$root" useradd --uid 1000 --user-group --create-home --shell /bin/bash user
echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/user"
chmod 0440 "$root/etc/sudoers.d/user"
# `sudo` must not wait for a name server to learn the host's name.
echo 'Defaults !fqdn' > "$root/etc/sudoers.d/names"
chmod 0440 "$root/etc/sudoers.d/names"

# `pip install` works for everybody: there is no system to protect from it in a sandbox.
cat > "$root/etc/pip.conf" <<'END'
[global]
break-system-packages = true
disable-pip-version-check = true
root-user-action = ignore
END

# Each command is a login shell's. Debian's profile starts `id` to learn what bash knows already.
sed -i 's/"$(id -u)"/"${EUID:-$(id -u)}"/' "$root/etc/profile"
grep -q EUID "$root/etc/profile"

echo 'LANG=C.UTF-8' > "$root/etc/default/locale"
ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
echo Etc/UTC > "$root/etc/timezone"
mkdir -p "$root/home/user/.local/bin"
chroot "$root" chown -R user:user /home/user
