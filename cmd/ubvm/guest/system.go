package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

func mountEarly() error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

func loadBootModules(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.ko*"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		flags := 0
		if !strings.HasSuffix(name, ".ko") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// enterRoot makes the root image the root file system and mounts the job's disks in it.
func enterRoot() error {
	const root = "/newroot"
	dev, err := waitDisk("ubvm-root")
	if err != nil {
		return err
	}
	if err := (mount{dev, root, "ext4", unix.MS_NOATIME, ""}).do(); err != nil {
		return err
	}
	for _, d := range []struct {
		serial, target string
		flags          uintptr
	}{
		{"ubvm-modules", "/usr/lib/modules", unix.MS_RDONLY},
		{"ubvm-job", "/job", unix.MS_RDONLY},
		// Synchronous: what a test wrote there outlives a reset.
		{"ubvm-out", "/out", unix.MS_SYNCHRONOUS | unix.MS_NOATIME},
	} {
		dev, err := waitDisk(d.serial)
		if err != nil {
			return err
		}
		if err := (mount{dev, root + d.target, "ext4", d.flags, ""}).do(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := (mount{dir, root + dir, "", unix.MS_MOVE, ""}).do(); err != nil {
			return err
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return mountLate()
}

func mountLate() error {
	for _, m := range []mount{
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", 0, "mode=1777"},
		{"devpts", "/dev/pts", "devpts", 0, "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	// Wanted by some tests only; a kernel may lack one.
	for _, m := range []mount{
		{"bpf", "/sys/fs/bpf", "bpf", 0, ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", 0, ""},
		{"debugfs", "/sys/kernel/debug", "debugfs", 0, ""},
		{"configfs", "/sys/kernel/config", "configfs", 0, ""},
	} {
		_ = unix.Mount(m.source, m.target, m.fstype, 0, "")
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		_ = os.Symlink(target, link)
	}
	return os.MkdirAll("/run/lock", 0o755)
}

// tune sets limits that turn a stuck kernel into a panic that the host sees.
func tune() error {
	hung := cmdlineString("ubvm.hung")
	if hung == "" {
		hung = "120"
	}
	for name, value := range map[string]string{
		"kernel/hung_task_timeout_secs": hung,
		"kernel/hung_task_panic":        "1",
		"kernel/hung_task_warnings":     "-1",
		"kernel/sysrq":                  "1",
		"kernel/printk":                 "7 4 1 7",
		"kernel/hostname":               "ubvm",
		"vm/panic_on_oom":               "0",
		"fs/aio-max-nr":                 "1048576",
	} {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS,
		uintptr(unsafe.Pointer(ifr)))
	if errno != 0 {
		return fmt.Errorf("bring up lo: %w", errno)
	}
	return nil
}

// modprobe loads modules that tests expect to be there. A kernel without one is for the test that
// needs it to complain about.
func modprobe(names ...string) {
	for _, name := range names {
		args := []string{"-q", name}
		if name == "brd" {
			args = append(args, "rd_nr=0")
		}
		cmd := exec.Command("/usr/sbin/modprobe", args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ubvm-init: modprobe %s: %v %s\n", name, err, out)
		}
	}
}

// waitDisk returns the device with a virtio serial number, which may appear a little later than
// the driver.
func waitDisk(serial string) (string, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		for s, dev := range disksBySerial() {
			if s == serial {
				return dev, nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no disk with serial number %s", serial)
		}
	}
}

func disksBySerial() map[string]string {
	disks := map[string]string{}
	names, _ := filepath.Glob("/sys/block/*/serial")
	for _, name := range names {
		text, err := os.ReadFile(name)
		if serial := strings.TrimSpace(string(text)); err == nil && serial != "" {
			disks[serial] = "/dev/" + filepath.Base(filepath.Dir(name))
		}
	}
	return disks
}

// linkDisks gives the test disks stable names and tells the kernel which of them do not rotate.
func linkDisks(dir string) (map[string]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	links := map[string]string{}
	for serial, dev := range disksBySerial() {
		if strings.HasPrefix(serial, "ubvm-") {
			continue
		}
		name, kind, _ := strings.Cut(serial, ":")
		link := filepath.Join(dir, name)
		if err := os.Symlink(dev, link); err != nil {
			return nil, fmt.Errorf("name disk %s: %w", name, err)
		}
		links[name] = link
		rotational := "0"
		if kind == "slow" {
			rotational = "1"
		}
		queue := filepath.Join("/sys/block", filepath.Base(dev), "queue/rotational")
		if err := os.WriteFile(queue, []byte(rotational), 0); err != nil {
			return nil, fmt.Errorf("set up disk %s: %w", name, err)
		}
	}
	return links, nil
}
