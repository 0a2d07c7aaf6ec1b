package main

import (
	"path/filepath"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// TestMistakesNameTheFix asserts all that a user reads after a mistake in a flag, in the
// name of a file, or in an address. An error names nothing that the command does not have.
func TestMistakesNameTheFix(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", cmdtest.ShortDir(t))
	taken := cmdtest.Occupied(t)
	dir := cmdtest.ShortDir(t)
	absent, other, file := filepath.Join(dir, "absent"), filepath.Join(dir, "other"), filepath.Join(dir, "file")
	cmdtest.WriteFile(t, file, "text")
	inFile := func(more string) string { return cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1", more)) }
	rootsInFile := inFile("identities: {me: {files: {ca: absent.crt}}}")
	const forward, socks5 = "forward --plain --to 127.0.0.1:1 --listen ", "socks5 --listen 127.0.0.1:0 "
	const to = "forward --plain --listen 127.0.0.1:0 --to "
	const byCommand = "no such file or directory; relative paths start at the folder where the command is run\n"
	for _, c := range []struct{ args, want string }{
		// Commands and flags.
		{"forwrad --listen x", "unknown command \"forwrad\"; did you mean `ambassador forward`?; see `ambassador --help`\n"},
		{"statsu --json", "unknown command \"statsu\"; did you mean `ambassador status`?; see `ambassador --help`\n"},
		{"entirely-different --json", "unknown command \"entirely-different\"; see `ambassador --help`\n"},
		{"--entirely-different x", "unknown flag: --entirely-different; see `ambassador --help`\n"},
		{"forward --lisen x", "unknown flag: --lisen; did you mean --listen?; see `ambassador forward --help`\n"},
		{"forward --entirely-different", "unknown flag: --entirely-different; see `ambassador forward --help`\n"},
		{"forward --xx", "unknown flag: --xx; see `ambassador forward --help`\n"},
		{"forward -x", "unknown shorthand flag: 'x' in -x; see `ambassador forward --help`\n"},
		{"forward --to", "flag needs an argument: --to; see `ambassador forward --help`\n"},
		{"forward --idle soon", "invalid argument \"soon\" for \"--idle\" flag: must be a duration like \"30s\" or \"5m\"; see `ambassador forward --help`\n"},
		{"help tracing", "unknown command or topic \"tracing\"; did you mean `ambassador explain tracing`?; see `ambassador --help`\n"},
		{"help egres", "unknown command or topic \"egres\"; did you mean `ambassador help egress`?; see `ambassador --help`\n"},
		{"help forwrad", "unknown command \"forwrad\"; did you mean `ambassador forward`?; see `ambassador --help`\n"},
		// What has to be given.
		{"forward", "--listen: required: where the application connects, like --listen 127.0.0.1:5433\n--to: required: the service, like --to db.internal:5432\n"},
		{"forward --listen 127.0.0.1:0", "--to: required: the service, like --to db.internal:5432\n"},
		{"forward --to 127.0.0.1:1", "--listen: required: where the application connects, like --listen 127.0.0.1:5433\n"},
		{"socks5 --allow a:1", "--listen: required: where clients connect, like --listen 127.0.0.1:1080\n"},
		{"test", "no configuration file: neither ./ambassador.yaml nor /etc/ambassador/ambassador.yaml is there; name one with -c FILE, or use `ambassador forward` or `ambassador test --to HOST:PORT`, which need none\n"},
		// Addresses.
		{to + "h", `--to: "h" is no HOST:PORT; write one like 127.0.0.1:5432 or [::1]:5432` + "\n"},
		{to + "h:postgres", `--to: "h:postgres": the port must be a number; postgres is 5432: write h:5432` + "\n"},
		{to + "h:70000", `--to: "h:70000": "70000" is no port; write a number from 1 to 65535` + "\n"},
		{to + "h:0", `--to: "h:0": nobody listens on port 0; write the service's port` + "\n"},
		{to + "a:1,b:2", `--to: "a:1,b:2" is more than one address; give each one separately` + "\n"},
		{forward + "127.0.0.1:http", `--listen: "127.0.0.1:http": the port must be a number; http is 80: write 127.0.0.1:80` + "\n"},
		{forward + "127.0.0.1:1,127.0.0.1:2", `--listen: "127.0.0.1:1,127.0.0.1:2" is more than one address; give each one separately` + "\n"},
		{socks5 + "--allow a:443,b:443", `--allow: "a:443,b:443": more than one destination; repeat the flag: --allow a:443 --allow b:443` + "\n"},
		{socks5 + "--allow a:https", `--allow: "a:https": the port must be a number; https is 443: write a:443` + "\n"},
		{"ca --listen x", `--listen: "x" is no HOST:PORT; write one like 127.0.0.1:5432 or [::1]:5432` + "\n"},
		// Files.
		{"forward --listen 127.0.0.1:0 --to h:1 --cert " + file, "--cert: needs --key, the file with its private key\n"},
		{"forward --listen 127.0.0.1:0 --to h:1 --cert " + absent + " --key " + other, "--cert: " + absent + ": " + byCommand + "--key: " + other + ": " + byCommand},
		{"forward --listen 127.0.0.1:0 --to h:1 --ca " + absent, "--ca: " + absent + ": " + byCommand},
		{socks5 + "--allow a:1 --users " + absent, "--users: " + absent + ": " + byCommand},
		{"run -c " + absent, absent + ": no such file or directory\n"},
		{"run -c " + rootsInFile, rootsInFile + ":7:31: identities.me.files.ca: " + filepath.Join(filepath.Dir(rootsInFile), "absent.crt") +
			": no such file or directory; relative paths start at the configuration file's folder\n"},
		// Sockets.
		{forward + taken, "listener forward: listen " + taken + ": the address is in use; stop what holds it (ss -ltnp tells) or choose another port\n"},
		{forward + "192.0.2.1:5433 --unsafe-plaintext-listen", "listener forward: listen 192.0.2.1:5433: this host does not have the address; choose one that it has (`ip address` lists them)\n"},
		{"ca --listen " + taken, "--listen: listen " + taken + ": the address is in use; stop what holds it (ss -ltnp tells) or choose another port\n"},
		{forward + "%nope:1", "listener forward: listen %nope:1: there is no network interface \"nope\"; `ip link` lists them\n"},
		{forward + "unix:" + absent + "/x.sock", "listener forward: listen unix:" + absent + "/x.sock: the folder " + absent + " does not exist; create it (mkdir -p " + absent + ") or choose another\n"},
		{forward + "unix:" + file + "/x.sock", "listener forward: listen unix:" + file + "/x.sock: " + file + " is not a folder; choose another path\n"},
		{forward + "unix:" + file, "listener forward: listen unix:" + file + ": a file that is no socket is there; move it away or choose another path\n"},
	} {
		t.Run(c.args, func(t *testing.T) {
			stdout, stderr := cmdtest.NewOutput(), cmdtest.NewOutput()
			code := run(t.Context(), strings.Fields(c.args), strings.NewReader(""), stdout, stderr)
			_, got, _ := strings.Cut("\n"+stderr.String(), "\nambassador: ") // lines of the log come before
			if code == 0 || got != c.want {
				t.Errorf("exit code %d\n got %s\nwant %s", code, stderr, c.want)
			}
		})
	}
}
