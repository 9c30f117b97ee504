package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ubcache/cmd/ubvm/internal/frame"
	"ubcache/cmd/ubvm/internal/progress"
	"ubcache/cmd/ubvm/internal/vm"
)

// runFlags are the flags of everything that boots.
type runFlags struct {
	kernel    string
	timeout   time.Duration
	memoryMiB int
	prealloc  bool
	erms      bool
	disks     []string
	bare      bool
	env       []string
	bins      []string
	kublk     bool
	out       string
	onReset   string
	maxBoots  int
}

func (f *runFlags) add(fs *pflag.FlagSet, timeout time.Duration) {
	fs.StringVar(&f.kernel, "kernel", "newest", kernelHelp)
	fs.DurationVar(&f.timeout, "timeout", timeout, "limit of the whole run")
	fs.IntVar(&f.memoryMiB, "mem", 2048, "memory of the guest in MiB")
	fs.BoolVar(&f.prealloc, "prealloc", false,
		"take the guest's memory at once: slow to start, no stalls afterwards")
	fs.BoolVar(&f.erms, "erms", false,
		"leave an emulated CPU its fast string operations, which QEMU makes slow: memory is copied byte by byte")
	fs.StringArrayVar(&f.disks, "disk", nil,
		"add or change a disk: NAME[,size=4G][,sector=4096][,iops=N][,bps=100M][,nodiscard][,scsi][,path=FILE]")
	fs.BoolVar(&f.bare, "bare", false, "no disks but those of --disk")
	fs.StringArrayVar(&f.env, "env", nil, "set a variable for the command: NAME=VALUE")
	fs.StringArrayVar(&f.bins, "bin", nil, "put a program on the guest's PATH: FILE[:NAME]")
	fs.BoolVar(&f.kublk, "kublk", false, "build the kernel's kublk and put it on the guest's PATH")
	fs.StringVar(&f.out, "out", "", "folder of the host that receives the guest's /out")
	fs.StringVar(&f.onReset, "on-reset", "fail",
		"what to do when the guest resets: fail, or reboot and run the step again with UBVM_BOOT raised")
	fs.IntVar(&f.maxBoots, "max-boots", 100, "limit of boots with --on-reset reboot")
}

// apply puts the flags into a configuration.
func (f *runFlags) apply(c *vm.Config) (err error) {
	c.Timeout, c.MemoryMiB, c.Prealloc, c.ERMS = f.timeout, f.memoryMiB, f.prealloc, f.erms
	c.Job.Env = append(c.Job.Env, f.env...)
	if f.out != "" {
		if c.OutDir, err = filepath.Abs(f.out); err != nil {
			return err
		}
	}
	switch f.onReset {
	case "fail":
	case "reboot":
		c.MaxBoots = f.maxBoots
	default:
		return fmt.Errorf("--on-reset %s: want fail or reboot", f.onReset)
	}
	for _, bin := range f.bins {
		file, name, ok := strings.Cut(bin, ":")
		if !ok {
			name = filepath.Base(file)
		}
		c.Files["bin/"+name] = file
	}
	if !f.bare {
		c.Disks = vm.DefaultDisks()
	}
	for _, spec := range f.disks {
		d, err := vm.ParseDisk(spec)
		if err != nil {
			return err
		}
		c.Disks = replaceDisk(c.Disks, d)
	}
	return nil
}

func replaceDisk(disks []vm.Disk, d vm.Disk) []vm.Disk {
	for i := range disks {
		if disks[i].Name == d.Name {
			disks[i] = d
			return disks
		}
	}
	return append(disks, d)
}

// boot builds everything, gives up the cache's lock, so that runs go on side by side, and boots.
func (f *runFlags) boot(ctx context.Context, add func(*machine, *vm.Config) error,
	boot func(context.Context, *vm.Config) error,
) error {
	m, err := openMachine(ctx, listAge)
	if err != nil {
		return err
	}
	defer m.close()
	c, err := m.config(ctx, f.kernel)
	if err != nil {
		return err
	}
	if f.kublk {
		if c.Files["bin/kublk"], err = m.kublk(ctx); err != nil {
			return err
		}
	}
	if err := add(m, &c); err != nil {
		return err
	}
	if err := f.apply(&c); err != nil {
		return err
	}
	m.unlock()
	return boot(ctx, &c)
}

func runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] -- command [argument]…",
		Short: "Boot, run one command as root, pass on its output and exit status",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.boot(cmd.Context(), func(_ *machine, c *vm.Config) error {
				c.Job.Steps = []frame.Step{{Name: args[0], Args: args}}
				if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice == 0 {
					c.Stdin = os.Stdin
				}
				return nil
			}, boot)
		},
	}
	f.add(cmd.Flags(), 15*time.Minute)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// boot runs the job and turns its first failed step into an exit status.
func boot(ctx context.Context, c *vm.Config) error {
	start, onReady := time.Now(), c.OnReady
	c.OnReady = func(b frame.Boot, n int) {
		again := ""
		if n > 1 {
			again = fmt.Sprintf(" (boot %d)", n)
		}
		progress.Note("Linux %s up in %.1f s%s", b.Kernel, time.Since(start).Seconds(), again)
		if onReady != nil {
			onReady(b, n)
		}
	}
	statuses, err := vm.Run(ctx, c)
	if err != nil {
		return err
	}
	if len(statuses) < len(c.Job.Steps) {
		return errors.New("guest ended before its last step")
	}
	for _, s := range statuses {
		if s.Text != "" {
			fmt.Fprintf(os.Stderr, "ubvm: %s: %s\n", c.Job.Steps[s.Step].Name, s.Text)
		}
	}
	for _, s := range statuses {
		if s.Code != 0 {
			return exitStatus(s.Code)
		}
	}
	return nil
}
