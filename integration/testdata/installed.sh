# Runs in a booted Debian without Go, as root; integration/installed_test.go starts it and
# judges what it prints: lines "NAME: VALUE". /test has the packages a.deb and b.deb, the
# keys, and env, which says where PostgreSQL is.
. /test/env
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
rm -f /usr/sbin/policy-rc.d
say() { echo "$*"; }
wait_for() { for i in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "never: $*" >&2; return 1; }
unit() { systemctl show -P "$1" "${2:-ambassador.service}"; }
# What packages, users and services leave, but for the package manager's own files.
traces() {
	find /etc /usr /var /run -xdev \( -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /run/systemd -o -path /run/udev -o -path /run/log -o -path /var/tmp -o -path /etc/netns -o -path '/etc/*-' \
		-o -path '/var/lib/dpkg/*-old' -o -path '/var/lib/systemd' -o -path /usr/share/man -o -path /run/mount -o -path /run/credentials -o -path /run/user -o -path /var/lib/PackageKit -o -path /run/dbus \) -prune -o -print
	getent passwd
	getent group
	systemctl list-unit-files --no-legend --no-pager | awk '{print $1, $2}'
	systemctl list-units --all --no-legend --no-pager --plain 'ambassador*'
	find /usr/share/man -name '*ambassador*'
}
query() { PGPASSWORD="$PASSWORD" PGCONNECT_TIMEOUT=10 psql -h 127.0.0.1 -p "${2:-5432}" -U app -d postgres -XAtqc "$1" 2>&1; }

systemctl start basic.target # what the first service would start and leave
say "go: $(command -v go)"
traces | LC_ALL=C sort >/test/w-before

# A server that accepts only our certificate, and a name for it.
PG="setpriv --reuid=$PGUSER_ID --regid=$PGGROUP_ID --clear-groups"
$PG "$PGBIN/pg_ctl" -D "$PG_DIR/d" -l "$PG_DIR/s/log" -o "-p $PGPORT" -w start >/dev/null
env "$SERVE_AS=dns 127.0.0.1:53 db.test" /test/self >/dev/null 2>&1 &
dns=$!
mount --bind /test/resolv.conf /etc/resolv.conf

# Install.
apt-get install -q -q -y /test/a.deb >/test/apt 2>&1 || cat /test/apt >&2
say "installed: $(dpkg-query -Wf '${Status} ${Version}' ambassador)"
say "version: $(ambassador version)"
say "enabled: $(systemctl is-enabled ambassador) $(systemctl is-active ambassador)"
say "folder: $(stat -c '%U %G %a' /etc/ambassador)"
say "user: $(id -un ambassador 2>&1)"
say "man: $(man -w ambassador 2>&1)"
say "completion: $(bash -c '. /usr/share/bash-completion/completions/ambassador && complete -p ambassador' 2>&1)"
for u in ambassador.service ambassador@second.service; do
	say "exposure: $(systemd-analyze security --no-pager $u 2>/dev/null | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')"
done
say "verify: $(systemd-analyze verify ambassador.service ambassador@second.service 2>&1 | grep -i ambassador)"

# As it is, the file sets nothing, and one start says so.
systemctl start ambassador 2>/dev/null && say "default: started"
wait_for sh -c 'journalctl -u ambassador --no-pager -o cat | grep -q comments'
say "default: $(unit ExecMainStatus) $(unit NRestarts) $(journalctl -u ambassador --no-pager -o cat | grep -o '/etc/ambassador/ambassador.yaml:1:1: the file is empty, or all of it is comments')"

# Edit one file.
install -m 640 /test/client.key /test/client.crt /test/ca.crt /etc/ambassador/
say "key: $(stat -c '%U %G %a' /etc/ambassador/client.key)"
sed -i -e 's/^#//' -e 's/db.internal:5432/db.test:'"$PGPORT"'/' -e 's/# starttls: postgres/starttls: postgres/' -e 's/# server_name: db.internal/server_name: localhost/' -e 's/^ *drain: .*//' /etc/ambassador/ambassador.yaml
echo 'drain: {timeout: 3s}' >>/etc/ambassador/ambassador.yaml
ambassador check >/dev/null || exit 1
systemctl enable -q --now ambassador || { journalctl -u ambassador --no-pager >&2; exit 1; }
say "started: $(systemctl is-active ambassador) $(systemctl is-enabled ambassador) $(unit StatusText)"
say "query: $(query 'select 40 + 2')"
say "status: $(ambassador status | head -1)"
say "ps: $(ambassador ps | grep -c /run/ambassador/admin.sock)"
say "process: $(stat -c %U /proc/$(unit MainPID))"
say "sandbox: $(ambassador status | sed -n 's/^sandbox: //p')"
say "sandbox outside: $(timeout 2 ambassador run -c /test/outside.yaml 2>&1 | sed -n '/"msg":"sandbox"/{s/.*"state":"\([^"]*\)".*/\1/p;q}')"
say "watchdog: $(unit WatchdogUSec) $(test "$(unit WatchdogTimestampMonotonic)" != 0 && echo fed)"

# A session that lives through reloads, good and bad ones.
mkfifo /test/w-in
PGPASSWORD="$PASSWORD" psql -h 127.0.0.1 -p 5432 -U app -d postgres -XAtq </test/w-in >/test/w-live 2>/test/w-ended &
exec 3>/test/w-in
echo 'create temp table kept (n int); insert into kept values (7); select n from kept;' >&3
wait_for grep -q 7 /test/w-live
cp /etc/ambassador/ambassador.yaml /test/w-good
sed -i 's/^listeners:/listenerz:/' /etc/ambassador/ambassador.yaml
systemctl reload ambassador 2>/dev/null
say "bad reload: $? $(systemctl is-active ambassador) $(journalctl -u ambassador --no-pager -o cat | grep -c 'ambassador.yaml:[0-9:]* listenerz: unknown key')"
sed 's/^ *listen: 127.0.0.1:5432/    listen: 127.0.0.2:5432/' /test/w-good >/etc/ambassador/ambassador.yaml
systemctl reload ambassador
say "reload: $?"
wait_for sh -c 'ambassador status | grep -q 127.0.0.2:5432'
sed -i 's/127.0.0.2:5432/127.0.0.1:5432/' /etc/ambassador/ambassador.yaml
systemctl reload ambassador
wait_for sh -c 'ambassador status | grep -q 127.0.0.1:5432'
echo 'select n + 1 from kept;' >&3
wait_for grep -q 8 /test/w-live
say "live: $(tr '\n' ' ' </test/w-live)"

# Instances, a port below 1024 by a drop-in, and a certificate that is kept in the state folder.
printf 'secret of the test\n' >/test/pw
ambassador ca --listen 127.0.0.1:9000 --storage /test/ca --password-file /test/pw >/test/ca.out 2>/test/ca.err 3>&- &
ca=$!
wait_for grep -q fingerprint /test/ca.out
cat >/etc/ambassador/second.yaml <<EOF
identities:
  own: {step: {url: "https://127.0.0.1:9000", fingerprint: $(sed -n 's/.*fingerprint: *"*\([0-9a-f]*\).*/\1/p' /test/ca.out | head -1), names: [app], provisioner: ambassador, password_file: /etc/ambassador/pw, storage: /var/lib/ambassador@second/own}}
upstreams:
  service: {endpoints: ["db.test:$PGPORT"], starttls: postgres, required: false, tls: {identity: own, server_name: localhost}}
listeners:
  low: {listen: "127.0.0.1:389", upstream: service}
EOF
install -m 640 /test/pw /etc/ambassador/pw
systemctl start ambassador@second 2>/dev/null
wait_for sh -c 'journalctl -u ambassador@second --no-pager -o cat | grep -q "127.0.0.1:389"'
say "low port: $(unit Result ambassador@second) $(journalctl -u ambassador@second --no-pager -o cat | grep -o '127.0.0.1:389.*' | head -1)"
mkdir -p /etc/systemd/system/ambassador@second.service.d
cp /test/ports.conf /etc/systemd/system/ambassador@second.service.d/ports.conf
systemctl daemon-reload
systemctl restart ambassador@second
say "instance: $(systemctl is-active ambassador@second) $(ss -Hltn 'sport = 389' | wc -l)"
wait_for sh -c 'ls /var/lib/ambassador@second/own/*'
say "storage: $(stat -Lc '%U %a' /var/lib/ambassador@second/own) $(ls /var/lib/ambassador@second/own | wc -l)"
say "both: $(ambassador ps | grep -c 'admin.sock')"
say "choose: $(ambassador status --admin /run/ambassador@second/admin.sock | head -1)"
systemctl stop ambassador@second
say "first alone: $(ambassador status | head -1)"

# A socket of systemd: the port is systemd's, and clients wait while the service restarts.
sed 's/389/390/' /usr/share/doc/ambassador/examples/ambassador.socket >/etc/systemd/system/ambassador.socket
cp /etc/ambassador/ambassador.yaml /test/w-good
sed -i 's/^listeners:/listeners:\n  ldap: {listen: "systemd:ldap", upstream: service}/' /etc/ambassador/ambassador.yaml
systemctl stop ambassador # a service that runs does not get a new socket
systemctl daemon-reload
systemctl start ambassador.socket
say "socket: $(query 'select 6 * 7' 390) $(systemctl is-active ambassador)"
exec 3>&-
systemctl restart --no-block ambassador
say "while restarting: $(query 'select 43' 390)"
wait_for systemctl -q is-active ambassador
systemctl stop ambassador.socket ambassador
mv /etc/systemd/system/ambassador.socket /test/w-socket
systemctl daemon-reload
cp /etc/ambassador/ambassador.yaml /test/w-with-socket
cp /test/w-good /etc/ambassador/ambassador.yaml
systemctl start ambassador ambassador@second

# Upgrade under load: a psql through mutual TLS that waits at its prompt, and echoes, plain and
# through mutual TLS, that never rest.
sed -i -e 's/^upstreams:/upstreams:\n  plain: {endpoints: ["127.0.0.1:9101"]}\n  mutual: {endpoints: ["127.0.0.1:9102"], tls: {identity: app, server_name: localhost}}/' \
	-e 's/^listeners:/listeners:\n  plain: {listen: "127.0.0.1:9201", upstream: plain}\n  mutual: {listen: "127.0.0.1:9202", upstream: mutual}/' /etc/ambassador/ambassador.yaml
cp /etc/ambassador/ambassador.yaml /test/w-good
env "$SERVE_AS=echoes /test" /test/self >/test/w-echoes 2>&1 3>&- &
echoes=$!
wait_for grep -q listening /test/w-echoes
systemctl restart ambassador
touch /test/w-go
PGPASSWORD="$PASSWORD" psql -h 127.0.0.1 -p 5432 -U app -d postgres -XAtq </test/w-in >/test/w-live 2>/test/w-ended &
live=$!
exec 3>/test/w-in
echo 'begin; create temporary table kept (n int); insert into kept values (7); select n from kept;' >&3
wait_for grep -q 7 /test/w-live
wait_for grep -q 'all sessions have moved bytes' /test/w-echoes
before=$(unit MainPID)
from=$(date +%s%N)
apt-get install -q -q -y /test/b.deb >/test/apt 2>&1 || cat /test/apt >&2
say "upgrade took: $((($(date +%s%N) - from) / 1000000)) ms"
say "upgraded: $(dpkg-query -Wf '${Version}' ambassador) $(systemctl is-active ambassador ambassador@second | tr '\n' ' ')"
say "restarted: $(test "$before" != "$(unit MainPID)" && echo yes) $(/proc/$(unit MainPID)/exe version | sed 's/ (.*//')"
say "conffile: $(cmp /test/w-good /etc/ambassador/ambassador.yaml && echo kept)"
echo 'select n + 1 from kept; commit;' >&3
wait_for grep -q 8 /test/w-live
say "live session: $(tr '\n' ' ' </test/w-live)$(head -1 /test/w-ended)"
say "not carried: $(journalctl -u ambassador --no-pager -o cat | grep 'sessions cannot be left to the next process')"
say "carried: $(ambassador status --admin /run/ambassador/admin.sock | grep -o '[0-9]* sessions carried over')"
say "query after: $(query 'select 44')"

# A version that refuses the configuration: the one that runs goes on.
before=$(unit MainPID)
sed -i 's/^listeners:/listenerz:/' /etc/ambassador/ambassador.yaml
dpkg -i /test/a.deb >/test/apt 2>&1 || cat /test/apt >&2
say "refused: $(grep -o 'the new version refuses the configuration of ambassador.service' /test/apt) $(test "$before" = "$(unit MainPID)" && echo same)"
cp /test/w-good /etc/ambassador/ambassador.yaml
dpkg -i /test/b.deb >/test/apt 2>&1 || cat /test/apt >&2
echo 'select n + 2 from kept;' >&3
wait_for grep -q 9 /test/w-live
exec 3>&-
wait $live
touch /test/w-stop
wait $echoes
say "echoes: $(tail -1 /test/w-echoes)"
say "lost: $(journalctl -u ambassador --no-pager -o cat | grep -c '"reason":"shutdown"')"

# A service that is stopped stays so.
systemctl stop ambassador
dpkg -i /test/a.deb >/dev/null 2>&1
dpkg -i /test/b.deb >/dev/null 2>&1
say "stopped: $(systemctl is-active ambassador)"
systemctl start ambassador

# Remove, with services and a socket that would start one again, and purge.
systemctl stop ambassador
cp /test/w-socket /etc/systemd/system/ambassador.socket
cp /test/w-with-socket /etc/ambassador/ambassador.yaml
systemctl daemon-reload
systemctl start ambassador.socket ambassador
say "before removal: $(systemctl is-active ambassador ambassador@second ambassador.socket | tr '\n' ' ')"
apt-get remove -q -q -y ambassador >/test/apt 2>&1 || cat /test/apt >&2
say "removed: $(ls /usr/bin/ambassador 2>&1 | grep -c 'No such') $(systemctl is-active ambassador ambassador@second ambassador.socket | tr '\n' ' ')$(ls /etc/ambassador/ambassador.yaml) $(ls /etc/systemd/system/multi-user.target.wants | grep -c ambassador)"
kill $ca $dns
rm -r /etc/systemd/system/ambassador@second.service.d /etc/systemd/system/ambassador.socket
systemctl daemon-reload
apt-get purge -q -q -y ambassador >/test/purge 2>&1 || cat /test/purge >&2
say "kept: $(ls /etc/ambassador | tr '\n' ' ')"
say "key kept: $(stat -c '%U %G %a' /etc/ambassador/client.key)"
systemctl reset-failed
traces | LC_ALL=C sort >/test/w-after
say "left: $(LC_ALL=C comm -13 /test/w-before /test/w-after | sed 's/^ambassador:x:[0-9:]*/ambassador:x:N:/' | tr '\n' ' ')"
say "gone: $(LC_ALL=C comm -23 /test/w-before /test/w-after | tr '\n' ' ')"
$PG "$PGBIN/pg_ctl" -D "$PG_DIR/d" -m immediate stop >/dev/null
say "end: reached"
