// Package vm boots the integration VM and runs one job in it.
package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"ubcache/cmd/ubvm/internal/frame"
	"ubcache/cmd/ubvm/internal/recipe"
)

// outBytes is the room for result files.
const outBytes = 256 << 20

// Config is one run. Kernel, Modules, BootModules, Rootfs and Init are files.
type Config struct {
	Kernel, Modules, Rootfs, Init string
	BootModules                   []string
	Accel                         Accel
	MemoryMiB                     int
	Prealloc                      bool // of the memory
	ERMS                          bool // the emulated CPU copies as QEMU's own does: slowly
	Disks                         []Disk
	Job                           frame.Job
	Files                         map[string]string // path on the job disk → file or folder of the host
	OutDir                        string            // receives the guest's /out; may be empty
	Timeout                       time.Duration     // of the whole run, anew when the emulator has spoilt it
	MaxBoots                      int               // more than 1: a reset of the guest boots it again
	Scratch                       string            // parent of the folder for what lives as long as the run
	Stdout, Stderr                io.Writer
	Stdin                         io.Reader                      // nil: the steps read nothing
	Resizes                       <-chan [2]uint16               // rows and columns of the terminal
	OnReady                       func(frame.Boot, int)          // after each boot, with its number
	OnExit                        func(frame.Step, frame.Status) // after each step
}

// A GuestError is a run that did not come to its end; the tail of the console is part of it.
type GuestError struct {
	What    string
	Console string // the last lines
	Log     string // file with all of them

	// spoilt says that the emulator is to blame, and that another boot can be tried: the job goes on in it,
	// or, if it is to begin anew, finds everything as it was before the first.
	spoilt, anew bool
}

func (e *GuestError) Error() string { return "guest " + e.What }

type run struct {
	config *Config
	dir    string
	disks  []Disk
	status []frame.Status // of the steps that have ended
}

func (r *run) path(name string) string { return filepath.Join(r.dir, name) }

// Run boots a guest, runs the job's steps and returns how each ended.
func Run(ctx context.Context, c *Config) ([]frame.Status, error) {
	r := &run{config: c}
	scratch, err := NewScratch(c.Scratch)
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	r.dir = scratch.Dir
	if err := r.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare run: %w", err)
	}
	err = r.bootAll(ctx, r.bootOnce)
	if c.OutDir != "" {
		err = errors.Join(err, r.collect())
	}
	return r.status, err
}

func (r *run) prepare(ctx context.Context) error {
	if err := writeInitrd(r.path("initrd"), r.config.Init, r.config.BootModules); err != nil {
		return err
	}
	job := r.path("job")
	if err := os.MkdirAll(filepath.Join(job, "bin"), 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(r.config.Job)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(job, "job.json"), text, 0o644); err != nil {
		return err
	}
	for to, from := range r.config.Files {
		if err := copyAny(from, filepath.Join(job, to)); err != nil {
			return err
		}
	}
	err = recipe.MakeImage(ctx, r.path("job.img"), job, recipe.ImageOptions{Label: "job"})
	if err != nil {
		return err
	}
	if err := os.RemoveAll(job); err != nil {
		return err
	}
	if err := os.Mkdir(r.path("empty"), 0o755); err != nil {
		return err
	}
	return r.blank(ctx)
}

// blank makes /out and the disks as a job finds them when it begins.
func (r *run) blank(ctx context.Context) error {
	// What is not written anew, such as the journal, would stay.
	if err := os.RemoveAll(r.path("out.img")); err != nil {
		return err
	}
	err := recipe.MakeImage(ctx, r.path("out.img"), r.path("empty"),
		recipe.ImageOptions{Label: "out", FreeBytes: outBytes, Journal: true})
	if err != nil {
		return err
	}
	r.disks = nil
	for _, d := range r.config.Disks {
		if d.Path == "" {
			if err := os.RemoveAll(d.file(r.dir)); err != nil {
				return err
			}
		}
		if err := d.create(r.dir); err != nil {
			return err
		}
		r.disks = append(r.disks, d)
	}
	return nil
}

// blame finds out whether the emulator has spoilt a boot, and what can be done then. A job of one boot goes on
// with the step that was cut short. One that counts its boots cannot, and begins anew.
func (r *run) blame(e *GuestError, ready bool) {
	e.anew = ready && r.config.MaxBoots > 1
	e.spoilt = r.config.Accel == TCG && (!e.anew || r.canBeginAnew()) && emulated(e.What, e.Console)
}

// canBeginAnew says that nothing the job has done is out of the run's hands: the end of a step, of which
// others were told, input, a disk that stays.
func (r *run) canBeginAnew() bool {
	return len(r.status) == 0 && r.config.Stdin == nil &&
		!slices.ContainsFunc(r.config.Disks, func(d Disk) bool { return d.Path != "" })
}

func copyAny(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// bootTries is how often a boot that the emulator has spoilt is tried.
const bootTries = 5

// bootFunc is [run.bootOnce], or a test's.
type bootFunc func(ctx context.Context, boot int) (done bool, err error)

// bootAll boots until the job is done, or has failed for another reason than the emulator.
func (r *run) bootAll(ctx context.Context, once bootFunc) error {
	for boot, tries := 1, 1; ; tries++ {
		var err error
		boot, err = r.bootOn(ctx, boot, once)
		var e *GuestError
		if !errors.As(err, &e) || !e.spoilt || tries == bootTries {
			return err
		}
		how := "trying again"
		if e.anew {
			how = "beginning anew"
		}
		fmt.Fprintf(r.config.Stderr, "ubvm: the emulator spoilt boot %d (%s); %s\n", boot, e.What, how)
		if e.anew {
			boot = 1
			if err := r.blank(ctx); err != nil {
				return fmt.Errorf("begin anew: %w", err)
			}
		}
	}
}

// bootOn goes on from a boot, again after each reset if that is wanted. It returns the last one.
func (r *run) bootOn(ctx context.Context, boot int, once bootFunc) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, r.config.Timeout)
	defer cancel()
	for ; ; boot++ {
		if done, err := once(ctx, boot); done || err != nil {
			return boot, err
		}
		if boot >= max(1, r.config.MaxBoots) {
			return boot, r.guestError(fmt.Sprintf("reset in boot %d, before the job was done", boot))
		}
	}
}

func (r *run) guestError(what string) *GuestError {
	e := &GuestError{What: what, Console: tail(r.path("console"))}
	log := filepath.Join(r.config.Scratch, "console-of-last-failure")
	if os.Rename(r.path("console"), log) == nil {
		e.Log = log
	}
	return e
}

// collect copies the guest's /out, as far as it got, to the host.
func (r *run) collect() error {
	if err := os.MkdirAll(r.config.OutDir, 0o755); err != nil {
		return fmt.Errorf("collect results: %w", err)
	}
	// Replay the journal of a guest that did not unmount; exit status 1 means repaired.
	_ = exec.Command("e2fsck", "-fy", r.path("out.img")).Run()
	cmd := exec.Command("debugfs", "-R", `rdump / "`+r.config.OutDir+`"`, r.path("out.img"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("collect results: %w: %s", err, out)
	}
	return os.RemoveAll(filepath.Join(r.config.OutDir, "lost+found"))
}
