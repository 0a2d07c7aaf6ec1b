package process

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// hardenProcess prevents dumps of the process and, if noNewPrivileges is set, prevents
// programs that it executes from gaining privileges.
func hardenProcess(noNewPrivileges bool) error {
	err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if noNewPrivileges {
		err = errors.Join(err, ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	}
	return err
}

// landlockABI returns the kernel's Landlock ABI version. The error says why there is
// none.
func landlockABI() (int, error) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.ENOSYS):
		return 0, errors.New("the kernel has no Landlock")
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, errors.New("the kernel was started without Landlock")
	case err != nil:
		return 0, fmt.Errorf("landlock_create_ruleset: %w", err)
	}
	return abi, nil
}

// restrictProcess confines every thread of the process, and all programs that it
// executes, to l. On an error nothing has changed. If it is called again, both limits
// apply.
func restrictProcess(l limits) error {
	// The rights of ABI 3; older ABIs enforce the rights that they know. Rights of
	// later ABIs stay unrestricted: ioctl on devices, which nothing here can open, and
	// connecting to unix sockets, which upstreams and agents need.
	cfg := landlock.Config{HandledAccessFS: landlock.V3.HandledAccessFS}
	var rules []landlock.Rule
	for _, g := range l.files {
		rules = append(rules, landlock.PathAccess(rightsOf(g), g.path).IgnoreIfMissing())
	}
	if l.bind != nil {
		cfg.HandledAccessNet |= ll.AccessNetBindTCP
		for _, port := range slices.Sorted(maps.Keys(l.bind)) { // 0 is any port that the kernel chooses
			rules = append(rules, landlock.BindTCP(uint16(port)))
		}
	}
	if l.connect != nil {
		cfg.HandledAccessNet |= ll.AccessNetConnectTCP
		for _, port := range slices.Sorted(maps.Keys(l.connect)) {
			rules = append(rules, landlock.ConnectTCP(uint16(port)))
		}
	}
	return cfg.BestEffort().Restrict(rules...)
}

// rightsOf converts a grant to Landlock's rights. Rights for folders must not be
// requested for a file.
func rightsOf(g grant) (rights landlock.AccessFSSet) {
	const (
		read = ll.AccessFSReadFile | ll.AccessFSReadDir
		keep = ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSRemoveFile
		// A socket is created in a folder of its own and then moved.
		listen = ll.AccessFSReadDir | ll.AccessFSMakeDir | ll.AccessFSRemoveDir | ll.AccessFSMakeSock | ll.AccessFSRemoveFile | ll.AccessFSRefer
	)
	if g.access&mayRead != 0 {
		rights |= read
	}
	if g.access&mayKeep != 0 {
		rights |= keep
	}
	if g.access&mayStart != 0 {
		rights |= ll.AccessFSExecute
	}
	if g.access&mayListen != 0 {
		rights |= listen
	}
	if g.info.Mode().Type() != fs.ModeDir {
		rights &= ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSExecute
	}
	return rights
}
