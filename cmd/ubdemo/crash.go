package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// fileSums are the seeds of the files that the writer has made, by name.
type fileSums map[string]uint64

// fileWriter makes one file after the other, each with fsync, until its context ends.
type fileWriter struct {
	files   fileSums
	made    atomic.Int64
	longest time.Duration
}

const fileBytes = 64 << 10

func (w *fileWriter) run(ctx context.Context, dir string) error {
	p := make([]byte, fileBytes)
	for i := uint64(1); ctx.Err() == nil; i++ {
		name := filepath.Join(dir, fmt.Sprintf("file-%04d", i))
		fill(p, i)
		start := time.Now()
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		_, err = f.Write(p)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		w.longest = max(w.longest, time.Since(start))
		w.files[filepath.Base(name)] = i
		w.made.Add(1)
	}
	return nil
}

// waitFor waits until the writer has made n more files.
func (d *demo) waitFor(w *fileWriter, n int64, fault <-chan error) error {
	limit := time.After(2 * time.Minute)
	for target := w.made.Load() + n; w.made.Load() < target; {
		select {
		case err := <-fault:
			return fmt.Errorf("the writer failed: %w", err)
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-limit:
			return errors.New("the writer does not get on")
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// killDaemon kills the daemon while files are being written, and starts it again.
func (d *demo) killDaemon() error {
	dir := filepath.Join(d.mount, "files")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	w := &fileWriter{files: fileSums{}}
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx, dir) }()
	if err := d.waitFor(w, 20, ended); err != nil {
		return err
	}
	s, err := d.status()
	if err != nil {
		return err
	}
	say("%d files of 64 KiB written so far, each with fsync; %s dirty", w.made.Load(), mb(s.dirty))
	show("kill", "-9", fmt.Sprint(s.pid))
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		return err
	}
	if err := d.tell("start"); err != nil {
		return err
	}
	if err := d.waitFor(w, 20, ended); err != nil {
		return err
	}
	cancel()
	if err := <-ended; err != nil {
		return fmt.Errorf("the writer saw an error: %w", err)
	}
	d.files = w.files
	say("the writer waited %.1f s for one file and then went on: %d files, no error",
		w.longest.Seconds(), w.made.Load())
	return nil
}

// checkFiles unmounts, checks the filesystem and compares all files, read from the device anew.
func (d *demo) checkFiles() error {
	if err := d.unmount(); err != nil {
		return err
	}
	if err := d.fsck(link); err != nil {
		return err
	}
	return d.compare(link)
}

func (d *demo) unmount() error {
	_, err := d.run("umount", d.mount)
	d.mounted = err != nil
	return err
}

func (d *demo) fsck(dev string) error {
	if _, err := d.run("e2fsck", "-fn", dev); err != nil {
		return err
	}
	say("clean")
	return nil
}

// compare mounts a device and compares the files with what was written.
func (d *demo) compare(dev string) error {
	if _, err := d.run("mount", dev, d.mount); err != nil {
		return err
	}
	d.mounted = true
	want := make([]byte, fileBytes)
	for name, seed := range d.files {
		got, err := os.ReadFile(filepath.Join(d.mount, "files", name))
		if err != nil {
			return err
		}
		if fill(want, seed); !bytes.Equal(got, want) {
			return fmt.Errorf("%s is not what was written", name)
		}
	}
	say("all %d files are what was written", len(d.files))
	return d.unmount()
}

// checkSSD stops the cache, checks all of its metadata and data, and starts it again.
func (d *demo) checkSSD() error {
	if err := d.tell("stop"); err != nil {
		return err
	}
	if err := d.tell("check", "--data", "demo"); err != nil {
		return err
	}
	return d.tell("start")
}

// giveBack detaches and looks at the slow disk alone.
func (d *demo) giveBack() error {
	if err := d.tell("detach", "demo"); err != nil {
		return err
	}
	if err := d.tell("stop"); err != nil {
		return err
	}
	if err := d.fsck(d.slow); err != nil {
		return err
	}
	return d.compare(d.slow)
}
