package blockdev

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounts lists where a block device is mounted, as the caller and as the first process of the
// system see it: a daemon has a mount namespace of its own. dev is "major:minor". Filesystems such
// as btrfs have device numbers of their own; they are found by the source they were mounted from.
func Mounts(dev, name string) []string {
	var at []string
	for _, proc := range []string{"/proc/1/mountinfo", "/proc/self/mountinfo"} {
		text, err := os.ReadFile(proc)
		if err != nil {
			continue
		}
		for _, m := range parseMounts(string(text)) {
			if m.dev == dev || m.source == name || sameDevice(m.source, dev) {
				at = append(at, m.at)
			}
		}
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// mount is a line of mountinfo.
type mount struct {
	dev, at, source string
	follows         bool // it goes when it is unmounted in the namespace that it was copied from
}

func parseMounts(text string) []mount {
	var list []mount
	for line := range strings.Lines(text) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) < 6 || len(g) < 2 {
			continue
		}
		follows := slices.ContainsFunc(f[6:], func(tag string) bool {
			return strings.HasPrefix(tag, "master:")
		})
		list = append(list, mount{f[2], unescape(f[4]), unescape(g[1]), follows})
	}
	return list
}

// Unneeded lists the mounts that a process with a mount namespace of its own has no use for, the
// newest first: those on ublk devices, and those of other devices that would stay here when
// the system unmounts them. Mounts under which one of the needed paths lies are kept, and so are those
// without a device, such as /proc.
func Unneeded(needed []string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return unneeded(parseMounts(string(text)), needed, (*mount).onUblk)
}

func unneeded(all []mount, needed []string, onUblk func(*mount) bool) []string {
	var at []string
	kept := slices.Clone(needed)
	// Backwards: what is mounted below another mount comes later than that.
	for _, m := range slices.Backward(all) {
		switch {
		case m.at == "/":
		case onUblk(&m), !m.follows && strings.HasPrefix(m.source, "/dev/") && !holds(m.at, kept):
			at = append(at, m.at)
			continue
		}
		kept = append(kept, m.at)
	}
	return at
}

// holds reports whether one of the paths is dir or below it.
func holds(dir string, paths []string) bool {
	return slices.ContainsFunc(paths, func(p string) bool {
		return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
	})
}

func (m *mount) onUblk() bool {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + m.dev)
	var st unix.Stat_t
	if strings.HasPrefix(m.source, "/dev/") && unix.Stat(m.source, &st) == nil {
		dir, err = filepath.EvalSymlinks("/sys/dev/block/" + devText(st.Rdev))
	}
	return err == nil && onUblk(dir)
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	for _, e := range [][2]string{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e[0], e[1])
	}
	return s
}

// OnUblk reports whether a folder, or the nearest one above it that exists, lies on a ublk device.
func OnUblk(dir string) bool {
	var st unix.Stat_t
	for unix.Stat(dir, &st) != nil {
		if dir == filepath.Dir(dir) {
			return false
		}
		dir = filepath.Dir(dir)
	}
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + devText(st.Dev))
	if err != nil {
		return false
	}
	if _, err := os.Stat(sys + "/partition"); err == nil {
		sys = filepath.Dir(sys)
	}
	return onUblk(sys)
}
