package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Users tells in words who uses the device: mounts, swap, holders such as device-mapper, and the
// same of its partitions. It is empty if nobody is known.
func (i *Info) Users() string {
	if !i.Block {
		return i.fileUsers()
	}
	devs := append([]string{i.sysfs}, partitions(i.sysfs)...)
	for _, dir := range devs {
		name := "/dev/" + filepath.Base(dir)
		text := sysText(dir, "dev")
		if at := Mounts(text, name); len(at) > 0 {
			return fmt.Sprintf("%s is mounted on %s", name, strings.Join(at, ", "))
		}
		if swapOn(text) {
			return name + " is in use as swap"
		}
		holders, _ := filepath.Glob(dir + "/holders/*")
		if len(holders) > 0 {
			return fmt.Sprintf("%s is in use by %s", name, holderNames(holders))
		}
	}
	return ""
}

func partitions(dir string) []string {
	var list []string
	subs, _ := filepath.Glob(dir + "/*/partition")
	for _, s := range subs {
		list = append(list, filepath.Dir(s))
	}
	return list
}

func holderNames(holders []string) string {
	var names []string
	for _, h := range holders {
		n := filepath.Base(h)
		if dm := sysText(h, "dm/name"); dm != "" {
			n += " (" + dm + ")"
		}
		names = append(names, n)
	}
	return strings.Join(names, ", ")
}

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
type mount struct{ dev, at, source string }

func parseMounts(text string) []mount {
	var list []mount
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		_, after, _ := strings.Cut(line, " - ")
		g := strings.Fields(after)
		if len(f) >= 7 && len(g) >= 2 {
			list = append(list, mount{f[2], unescape(f[4]), unescape(g[1])})
		}
	}
	return list
}

// MountsOnUblk lists the mounts of the caller's mount namespace that lie on ublk devices, the
// newest first.
func MountsOnUblk() []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var at []string
	for _, m := range parseMounts(string(text)) {
		dir, err := filepath.EvalSymlinks("/sys/dev/block/" + m.dev)
		var st unix.Stat_t
		if strings.HasPrefix(m.source, "/dev/") && unix.Stat(m.source, &st) == nil {
			dir, err = filepath.EvalSymlinks("/sys/dev/block/" + devText(st.Rdev))
		}
		if err == nil && onUblk(dir) {
			at = append(at, m.at)
		}
	}
	slices.Reverse(at)
	return at
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

func sameDevice(path, dev string) bool {
	var st unix.Stat_t
	if !strings.HasPrefix(path, "/dev/") || unix.Stat(path, &st) != nil ||
		st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return false
	}
	return dev == devText(st.Rdev)
}

func devText(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// unescape undoes the octal escapes of /proc/self/mountinfo.
func unescape(s string) string {
	for _, e := range [][2]string{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e[0], e[1])
	}
	return s
}

func swapOn(dev string) bool {
	text, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[1] == "partition" && sameDevice(f[0], dev) {
			return true
		}
	}
	return false
}

// fileUsers finds loop devices on a file.
func (i *Info) fileUsers() string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if sysText(filepath.Dir(f), "backing_file") == i.Path {
			return fmt.Sprintf("it backs /dev/%s", filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return ""
}

// Openers names processes that have the device or file open.
func (i *Info) Openers() []string {
	var want unix.Stat_t
	if unix.Stat(i.Path, &want) != nil {
		return nil
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	seen := map[int]bool{}
	var list []string
	for _, l := range links {
		var st unix.Stat_t
		pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
		if seen[pid] || unix.Stat(l, &st) != nil || !sameFile(&st, &want) {
			continue
		}
		seen[pid] = true
		name := sysText(fmt.Sprintf("/proc/%d", pid), "comm")
		list = append(list, fmt.Sprintf("%s (pid %d)", name, pid))
	}
	return list
}

func sameFile(a, b *unix.Stat_t) bool {
	if a.Mode&unix.S_IFMT != b.Mode&unix.S_IFMT {
		return false
	}
	if a.Mode&unix.S_IFMT == unix.S_IFBLK {
		return a.Rdev == b.Rdev
	}
	return a.Dev == b.Dev && a.Ino == b.Ino
}
