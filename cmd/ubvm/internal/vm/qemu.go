package vm

import (
	"fmt"
	"strings"

	"ubcache/cmd/ubvm/internal/frame"
)

// Accel is how QEMU runs the guest's code.
type Accel string

// KVM is tried before it is trusted; TCG, emulation, works everywhere.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// hungSeconds is when a task that does not wake up counts as hung.
func (a Accel) hungSeconds() int {
	if a == KVM {
		return 60
	}
	return 120
}

// args are QEMU's options. erms leaves an emulated CPU its fast string operations, which are slow.
func (a Accel) args(erms bool) []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	// Five-level page tables cost an emulated CPU a lookup for nothing. Without erms nobody copies and clears memory
	// by "rep movsb", which a CPU does by cache lines and QEMU byte by byte: 12 µs for 4 KiB instead of 3.
	cpu := "max,la57=off"
	if !erms {
		cpu += ",erms=off"
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=1024", "-cpu", cpu}
}

// image is a disk of the machinery, not of the tests.
type image struct {
	serial, path string
	mode         string // a drive option
}

func (i image) args() []string {
	return []string{
		"-drive", fmt.Sprintf("if=none,format=raw,cache=writeback,id=%s,%s,file=%s",
			i.serial, i.mode, strings.ReplaceAll(i.path, ",", ",,")),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", i.serial, i.serial),
	}
}

// qemuArgs are the options of one boot.
func (r *run) qemuArgs(boot, step int) []string {
	c := r.config
	cmdline := []string{
		"console=ttyS0", "loglevel=5", "panic=-1", "oops=panic", "sysrq_always_enabled",
		// Emulated CPUs of a loaded host stand still for seconds, even while the kernel counts the
		// ticks of its timer.
		"no_timer_check", "watchdog_thresh=60", "rcupdate.rcu_cpu_stall_timeout=120", "mitigations=off",
		fmt.Sprintf("ubvm.hung=%d", c.Accel.hungSeconds()),
		fmt.Sprintf("ubvm.boot=%d", boot), fmt.Sprintf("ubvm.step=%d", step),
		"ubvm.accel=" + string(c.Accel),
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-smp", "2", "-m", fmt.Sprint(c.MemoryMiB),
		"-kernel", c.Kernel, "-initrd", r.path("initrd"), "-append", strings.Join(cmdline, " "),
		"-serial", "stdio", "-monitor", "none",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=port,path=" + r.path("port"),
		"-device", "virtserialport,chardev=port,name=" + frame.Port,
		"-chardev", "socket,id=plug,path=" + r.path("plug"),
		"-device", "virtserialport,chardev=plug,name=" + plugPort,
		"-device", "virtio-scsi-pci,id=" + scsiBus,
		"-qmp", "unix:" + r.path("qmp") + ",server=on,wait=off",
	}
	args = append(args, c.Accel.args(c.ERMS)...)
	if c.Prealloc {
		args = append(args, "-mem-prealloc")
	}
	for _, i := range []image{
		{"ubvm-root", c.Rootfs, "snapshot=on"},
		{"ubvm-modules", c.Modules, "readonly=on"},
		{"ubvm-job", r.path("job.img"), "readonly=on"},
		{"ubvm-out", r.path("out.img"), "discard=unmap"},
	} {
		args = append(args, i.args()...)
	}
	for _, d := range r.disks {
		args = append(args, d.args()...)
	}
	return args
}
