package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
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

func sameDevice(path, dev string) bool {
	var st unix.Stat_t
	if !strings.HasPrefix(path, "/dev/") || unix.Stat(path, &st) != nil ||
		st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return false
	}
	return dev == devText(st.Rdev)
}

func devText(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

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
