//go:build vm

package ublk_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// traffic writes numbered blocks and reads them back until it is stopped. Any error or any old
// content is a failure.
type traffic struct {
	ops  atomic.Int64
	quit chan struct{}
	err  chan error
}

func startTraffic(t *testing.T, path string) *traffic {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr := &traffic{quit: make(chan struct{}), err: make(chan error, 1)}
	go func() { tr.err <- tr.run(fd) }()
	return tr
}

func (tr *traffic) run(fd int) error {
	defer unix.Close(fd)
	buf, err := ublk.NewArena(128 << 10)
	if err != nil {
		return err
	}
	defer buf.Free()
	for i := 0; ; i++ {
		select {
		case <-tr.quit:
			return nil
		default:
		}
		size := 4096 << (i % 5)
		b, off := buf.Slice(0, size), int64(i%100)*128<<10
		for j := range b {
			b[j] = byte(i + j)
		}
		if _, err := unix.Pwrite(fd, b, off); err != nil {
			return fmt.Errorf("write %d: %w", i, err)
		}
		clear(b)
		if _, err := unix.Pread(fd, b, off); err != nil {
			return fmt.Errorf("read %d: %w", i, err)
		}
		for j := range b {
			if b[j] != byte(i+j) {
				return fmt.Errorf("block %d: wrong data at %d", i, j)
			}
		}
		tr.ops.Add(1)
	}
}

func (tr *traffic) progress(t *testing.T) {
	t.Helper()
	target := tr.ops.Load() + 50
	waitFor(t, "traffic", func() bool {
		select {
		case err := <-tr.err:
			t.Fatalf("traffic: %v", err)
		default:
		}
		return tr.ops.Load() >= target
	})
}

func (tr *traffic) stop(t *testing.T) {
	t.Helper()
	close(tr.quit)
	select {
	case err := <-tr.err:
		if err != nil {
			t.Errorf("traffic: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("traffic hangs")
	}
}

func TestKillAndRecover(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		store := newStore(t)
		s := startServer(t, store, "create", mode.String(), "reissue")
		tr := startTraffic(t, fmt.Sprintf("/dev/ublkb%d", s.id))
		for range 3 {
			tr.progress(t)
			s.kill(t)
			s = startServer(t, store, "recover", strconv.Itoa(s.id))
			tr.progress(t)
		}
		info, err := ublk.Lookup(s.id)
		if err != nil || info.State != ublk.StateLive || info.PID != s.cmd.Process.Pid {
			t.Errorf("after recovery: %+v, %v", info, err)
		}
		tr.stop(t)
		s.signal(t, unix.SIGTERM)
	})
}

func TestKillUnderFio(t *testing.T) {
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		store := newStore(t)
		s := startServer(t, store, "create", mode.String(), "reissue")
		fio := exec.Command("fio", "--name=v", "--filename=/dev/ublkb"+strconv.Itoa(s.id),
			"--ioengine=io_uring", "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=32",
			"--size=32m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
		out := make(chan error, 1)
		go func() {
			text, err := fio.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, text)
			}
			out <- err
		}()
		for range 3 {
			time.Sleep(300 * time.Millisecond)
			s.kill(t)
			s = startServer(t, store, "recover", strconv.Itoa(s.id))
		}
		select {
		case err := <-out:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("fio hangs")
		}
		s.signal(t, unix.SIGTERM)
	})
}

func TestQuiesceAndTakeOver(t *testing.T) {
	need(t, ublk.FeatureQuiesce)
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		store := newStore(t)
		s := startServer(t, store, "create", mode.String(), "requeue")
		tr := startTraffic(t, fmt.Sprintf("/dev/ublkb%d", s.id))
		for range 3 {
			tr.progress(t)
			s.signal(t, unix.SIGUSR2)
			info, err := ublk.Lookup(s.id)
			if err != nil || info.State != ublk.StateQuiesced {
				t.Errorf("after Quiesce: %+v, %v", info, err)
			}
			s = startServer(t, store, "recover", strconv.Itoa(s.id))
		}
		tr.progress(t)
		tr.stop(t)
		s.signal(t, unix.SIGTERM)
	})
}

// In one process too a handed-over device can be taken over, and the old handle is then dead.
func TestQuiesceInProcess(t *testing.T) {
	need(t, ublk.FeatureQuiesce)
	disk := newDisk(t, testDiskSize)
	o := testOptions(ublk.Copy, testDiskSize)
	o.Recovery, o.Tag = ublk.RecoveryRequeue, 4711
	d, err := ublk.Create(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(disk.factory); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		tr := startTraffic(t, d.Path())
		tr.progress(t)
		if err := d.Quiesce(timeout(t, 20*time.Second), 10*time.Second); err != nil {
			t.Fatal(err)
		}
		if d, err = ublk.Recover(timeout(t, 20*time.Second), d.ID(), ublk.Options{}); err != nil {
			t.Fatal(err)
		}
		if got := d.Options(); got.Tag != 4711 || got.Depth != o.Depth || got.Queues != o.Queues ||
			got.Params.SizeBytes != o.Params.SizeBytes {
			t.Errorf("options after Recover: %+v", got)
		}
		if err := d.Start(disk.factory); err != nil {
			t.Fatal(err)
		}
		tr.progress(t)
		tr.stop(t)
	}
	if err := d.Delete(timeout(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// A server that dies while it recovers leaves the device recoverable.
func TestRecoverAfterFailedRecovery(t *testing.T) {
	store := newStore(t)
	s := startServer(t, store, "create", "copy", "reissue")
	tr := startTraffic(t, fmt.Sprintf("/dev/ublkb%d", s.id))
	tr.progress(t)
	s.kill(t)
	d, err := ublk.Recover(timeout(t, 20*time.Second), s.id, ublk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err = d.Start(func(i int) (ublk.Handler, error) { return failingStart{err: boom}, nil })
	if !errors.Is(err, boom) {
		t.Errorf("Start: %v, want boom", err)
	}
	s = startServer(t, store, "recover", strconv.Itoa(s.id))
	tr.progress(t)
	tr.stop(t)
	s.signal(t, unix.SIGTERM)
}

func TestNotRecoverable(t *testing.T) {
	d := serve(t, testOptions(ublk.Copy, testDiskSize), newDisk(t, testDiskSize).factory)
	_, err := ublk.Recover(timeout(t, time.Second), d.ID(), ublk.Options{})
	if !errors.Is(err, ublk.ErrNotRecoverable) {
		t.Errorf("Recover of a device without recovery: %v", err)
	}
	o := testOptions(ublk.Copy, testDiskSize)
	o.Recovery = ublk.RecoveryReissue
	d = serve(t, o, newDisk(t, testDiskSize).factory)
	_, err = ublk.Recover(timeout(t, 200*time.Millisecond), d.ID(), ublk.Options{})
	if !errors.Is(err, ublk.ErrBusy) {
		t.Errorf("Recover of a device that is served: %v", err)
	}
}

// What waits for a server fails when the device is deleted instead.
func TestDeleteOfQuiesced(t *testing.T) {
	store := newStore(t)
	s := startServer(t, store, "create", "copy", "reissue")
	tr := startTraffic(t, fmt.Sprintf("/dev/ublkb%d", s.id))
	tr.progress(t)
	s.kill(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := ublk.DeleteID(ctx, s.id); err != nil {
		t.Fatal(err)
	}
	if err := <-tr.err; err == nil {
		t.Error("traffic on a deleted device went on without error")
	}
}

func TestKillWithoutRecovery(t *testing.T) {
	store := newStore(t)
	s := startServer(t, store, "create", "copy", "none")
	tr := startTraffic(t, fmt.Sprintf("/dev/ublkb%d", s.id))
	tr.progress(t)
	s.kill(t)
	if err := <-tr.err; err == nil {
		t.Error("traffic without a server went on without error")
	}
	if err := ublk.DeleteID(timeout(t, 20*time.Second), s.id); err != nil {
		t.Fatal(err)
	}
}
