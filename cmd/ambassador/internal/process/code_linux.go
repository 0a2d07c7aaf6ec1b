package process

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ambassador/certs"
)

// maxMappings bounds the text of /proc/self/smaps that codeMappings reads, in bytes.
const maxMappings = 1 << 20

// mapping is a range of addresses of this process.
type mapping struct{ start, end uintptr }

// codeMappings returns the mappings of the program's code and constants. It returns none
// if /proc cannot be read. Call it before the sandbox, which has no access to /proc.
func codeMappings() []mapping {
	text, err := certs.ReadFile("/proc/self/smaps", maxMappings)
	if err != nil {
		return nil
	}
	return parseMappings(string(text))
}

// parseMappings reads the format of smaps (proc_pid_smaps(5)). It leaves out a mapping
// that can be written to, and one with pages that differ from its file, in memory or in
// swap: a debugger's breakpoints, relocations.
func parseMappings(text string) (out []mapping) {
	var current mapping
	zero := map[string]bool{} // fields of the current mapping
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if isRange(fields) {
			current = readOnlyFile(fields)
			clear(zero)
			continue
		}
		if len(fields) < 2 || fields[1] != "0" {
			continue
		}
		zero[fields[0]] = true
		if current.end != 0 && zero["Anonymous:"] && zero["Swap:"] {
			out = append(out, current)
			current = mapping{}
		}
	}
	return out
}

// isRange reports whether the fields begin a mapping: "400000-13b6000 r-xp …".
func isRange(fields []string) bool {
	return len(fields) >= 5 && strings.Contains(fields[0], "-")
}

// readOnlyFile returns the mapping that begins with the fields; zero if it is not a
// private mapping of a file that cannot be written to.
func readOnlyFile(fields []string) mapping {
	if !slices.Contains([]string{"r-xp", "r--p"}, fields[1]) || fields[4] == "0" {
		return mapping{}
	}
	from, to, _ := strings.Cut(fields[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil || start >= end {
		return mapping{}
	}
	return mapping{uintptr(start), uintptr(end)}
}

// dropPages takes the pages of the mappings out of the process. The kernel maps a page
// again, from its file, when it is used.
func dropPages(mappings []mapping) {
	for _, m := range mappings {
		unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}
