package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// demo is what the steps share.
type demo struct {
	ctx  context.Context
	dir  string
	work string // temporary folder: configuration, runtime folder's name, mount point

	ssd, slow string // devices
	throttled bool   // the slow disk is really slow
	config    string
	mount     string
	mounted   bool
	undo      []func() error // of the disks, last first
	coldIOPS  float64        // of random reads from the slow disk
	files     fileSums
}

// link is the cached device's name that stays the same.
const link = "/dev/ubcache/demo"

// say prints a result: one line.
func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// show prints a command as one would type it.
func show(name string, args ...string) {
	var b strings.Builder
	for _, a := range args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		b.WriteString(" " + a)
	}
	fmt.Printf("   $ %s%s\n", name, b.String())
}

// run shows a command, runs it and returns its output.
func (d *demo) run(name string, args ...string) (string, error) {
	show(name, args...)
	return d.quietly(name, args...)
}

func (d *demo) quietly(name string, args ...string) (string, error) {
	return output(d.ctx, name, args...)
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String() + stdout.String())
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// ubcache runs the command under demonstration. The configuration is one of its own, so that the
// machine's is left alone; the first step says what $CONF stands for.
func (d *demo) ubcache(args ...string) (string, error) {
	show("ubcache", append(args, "--config=$CONF")...)
	return d.quietly("ubcache", append(args, "--config="+d.config)...)
}

// tell is ubcache with its output printed.
func (d *demo) tell(args ...string) error {
	out, err := d.ubcache(args...)
	for line := range strings.Lines(out) {
		say("%s", strings.TrimRight(line, "\n"))
	}
	return err
}

// status is what the demonstration shows of ubcache status and stats.
type status struct {
	pid   int
	dirty int64 // bytes

	hits, misses, writtenBack, onSSD int64 // blocks of 4 KiB
}

func (d *demo) status() (s status, err error) {
	var st []struct {
		PID     int `json:"pid"`
		Devices []struct {
			Dirty int64 `json:"dirty_bytes"`
		} `json:"devices"`
	}
	var counts []struct {
		Devices map[string]struct {
			Hits        int64 `json:"hit_blocks"`
			Misses      int64 `json:"miss_blocks"`
			WrittenBack int64 `json:"writeback_blocks"`
			OnSSD       int64 `json:"cached_write_blocks"`
		} `json:"devices"`
	}
	for _, q := range []struct {
		command string
		into    any
	}{{"status", &st}, {"stats", &counts}} {
		out, err := d.quietly("ubcache", q.command, "--json", "--config="+d.config)
		if err == nil {
			err = json.Unmarshal([]byte(out), q.into)
		}
		if err != nil {
			return s, err
		}
	}
	if len(st) != 1 || len(st[0].Devices) != 1 || len(counts) != 1 {
		return s, errors.New("ubcache status does not show one cache with one device")
	}
	dev, n := st[0].Devices[0], counts[0].Devices["demo"]
	return status{
		pid: st[0].PID, dirty: dev.Dirty, hits: n.Hits, misses: n.Misses,
		writtenBack: n.WrittenBack, onSSD: n.OnSSD,
	}, nil
}

// cleanUp removes everything, whatever state it is in. It is not interrupted.
func (d *demo) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if d.config != "" {
		if _, err := os.Stat(d.config); err == nil {
			// A killed daemon has left its device with I/O waiting: start takes it over, so that
			// the filesystem can be unmounted.
			_, _ = output(ctx, "ubcache", "start", "--config="+d.config)
		}
	}
	var errs []error
	if d.mounted {
		errs = append(errs, d.unmountAtLast(ctx))
	}
	if d.config != "" {
		_, _ = output(ctx, "ubcache", "stop", "--force", "--config="+d.config)
	}
	for i := len(d.undo) - 1; i >= 0; i-- {
		errs = append(errs, d.undo[i]())
	}
	return errors.Join(errs...)
}

// unmountAtLast unmounts as soon as the writer, if it was interrupted, has ended its last file.
func (d *demo) unmountAtLast(ctx context.Context) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := output(ctx, "umount", d.mount)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// later notes how something is undone in the end.
func (d *demo) later(name string, args ...string) {
	d.undo = append(d.undo, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := output(ctx, name, args...)
		return err
	})
}

// workFolder makes the folder of the configuration, and one for sockets that is on tmpfs.
func (d *demo) workFolder() (err error) {
	if d.work, err = os.MkdirTemp(d.dir, "ubdemo-"); err != nil {
		return err
	}
	d.later("rm", "-rf", d.work)
	runtime, err := os.MkdirTemp("/dev/shm", "ubdemo-")
	if err != nil {
		return err
	}
	d.later("rm", "-rf", runtime)
	d.config, d.mount = filepath.Join(d.work, "ubcache.toml"), filepath.Join(d.work, "mnt")
	if err := os.Mkdir(d.mount, 0o755); err != nil {
		return err
	}
	return os.Setenv("UBCACHE_RUNTIME_DIR", runtime)
}
