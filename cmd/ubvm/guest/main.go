// Command guest is the first process of the integration VM. It brings up just enough of a system
// to run tests as root (no udev, no service manager), runs the job that the host put on the job
// disk, reports each step's exit status over a virtio-serial port and powers the machine off.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ubcache/cmd/ubvm/internal/frame"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the init of ubvm's guest: run it as PID 1")
		os.Exit(2)
	}
	err := boot()
	if err != nil {
		// The host scans the console for this line and shows what stands before it.
		fmt.Fprintf(os.Stderr, "ubvm-init: %v\n", err)
	}
	powerOff()
}

func boot() error {
	if err := mountEarly(); err != nil {
		return err
	}
	if err := loadBootModules("/modules"); err != nil {
		return err
	}
	if err := enterRoot(); err != nil {
		return err
	}
	// From here on there is someone to tell.
	port, err := openPort(frame.Port)
	if err != nil {
		return err
	}
	out := frame.NewWriter(port)
	if err := work(port, out); err != nil {
		_ = out.Write(frame.Fault, []byte(err.Error()))
		return err
	}
	return nil
}

func work(port *os.File, out *frame.Writer) error {
	text, err := os.ReadFile("/job/job.json")
	if err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	var job frame.Job
	if err := json.Unmarshal(text, &job); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	disks, err := linkDisks("/dev/vmdisk")
	if err != nil {
		return err
	}
	if err := tune(); err != nil {
		return err
	}
	modprobe("ublk_drv", "loop", "dm_mod", "brd")
	env, err := environment(disks)
	if err != nil {
		return err
	}
	for _, kv := range append(env, job.Env...) {
		k, v, _ := strings.Cut(kv, "=")
		os.Setenv(k, v)
	}
	if err := out.WriteJSON(frame.Ready, bootReport()); err != nil {
		return fmt.Errorf("report to host: %w", err)
	}
	r := &runner{
		port: port, out: out, job: job,
		started: make(chan struct{}), input: make(chan []byte, 64),
	}
	go r.listen()
	go r.feed()
	if err := r.runAll(cmdlineInt("ubvm.step")); err != nil {
		return err
	}
	// Results must be on the disk before the host hears that all is done.
	if err := unix.Unmount("/out", 0); err != nil {
		unix.Sync()
	}
	return out.Write(frame.Done, nil)
}

// environment is what every step sees.
func environment(disks map[string]string) ([]string, error) {
	release, err := kernelRelease()
	if err != nil {
		return nil, err
	}
	env := []string{
		"PATH=/job/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LANG=C.UTF-8", "TMPDIR=/tmp",
		"DM_DISABLE_UDEV=1", // no udev answers: dmsetup and LVM make the nodes
		"UBVM_BOOT=" + strconv.Itoa(max(1, cmdlineInt("ubvm.boot"))),
		"UBVM_ACCEL=" + cmdlineString("ubvm.accel"),
		"UBVM_KERNEL=" + release,
		"UBVM_OUT=/out",
	}
	for name, dev := range disks {
		env = append(env, "UBVM_"+strings.ToUpper(name)+"="+dev)
	}
	return env, nil
}

func kernelRelease() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text)), err
}

func bootReport() frame.Boot {
	release, _ := kernelRelease()
	text, _ := os.ReadFile("/proc/uptime")
	first, _, _ := strings.Cut(string(text), " ")
	uptime, _ := strconv.ParseFloat(first, 64)
	return frame.Boot{Kernel: release, UptimeSeconds: uptime}
}

func cmdlineString(key string) string {
	text, _ := os.ReadFile("/proc/cmdline")
	for _, f := range strings.Fields(string(text)) {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			return v
		}
	}
	return ""
}

func cmdlineInt(key string) int {
	n, _ := strconv.Atoi(cmdlineString(key))
	return n
}

// openPort finds a virtio-serial port by name; without udev there is no link to it.
func openPort(name string) (*os.File, error) {
	ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, p := range ports {
		text, err := os.ReadFile(p)
		if err == nil && strings.TrimSpace(string(text)) == name {
			dev := filepath.Join("/dev", filepath.Base(filepath.Dir(p)))
			f, err := os.OpenFile(dev, os.O_RDWR, 0)
			if err != nil {
				return nil, fmt.Errorf("open host port: %w", err)
			}
			return f, nil
		}
	}
	return nil, fmt.Errorf("no virtio-serial port %s", name)
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}
