package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSharingRecovery: the daemon dies twice. Each next one knows the memory by its index before it
// serves, without registering anything; the client that comes back has the same registration.
func TestSharingRecovery(t *testing.T) {
	f, record := newFakeDriver(t), filepath.Join(t.TempDir(), "record")
	one := newSharingClient(t, 1)
	// Another process, as what the daemon itself has mapped would count as the client's in this one.
	child := newHolder(t, "open")
	theirs, err := child.buffer.take()
	must(t, err)
	two := &sharingClient{nil, theirs, child.buffer.Owner}
	s := f.daemonOn(record, false)
	for i, c := range []*sharingClient{one, two} {
		r, err := s.add(t.Context(), c.who, c.view)
		must(t, err)
		if r.index != i {
			t.Fatalf("index %d, want %d", r.index, i)
		}
	}
	if f.merges() != noMerges {
		t.Errorf("nomerges %s with memory registered", f.merges())
	}
	for range 2 {
		s = f.daemonOn(record, true)
		sees(t, s.table.at(0), 1)
		sees(t, s.table.at(1), holderByte)
		s.settle(t.Context())
		s.tend(t.Context())
		if len(f.asked) != 0 || s.count() != 2 {
			t.Fatalf("unregistered %v, %d left", f.asked, s.count())
		}
	}
	r, err := s.add(t.Context(), one.who, one.view)
	must(t, err)
	if r.index != 0 || len(f.registered) != 2 {
		t.Errorf("the client is back with index %d, %d registered", r.index, len(f.registered))
	}
	must(t, s.drop(t.Context(), r))
	if s.table.at(0) != nil || f.registered[0] != nil || f.merges() != noMerges {
		t.Errorf("given back: %v, nomerges %s", f.registered, f.merges())
	}
	// The other one does not come back, but ends.
	child.end()
	s.tend(t.Context())
	f.none()
	if f.merges() != "1" || s.count() != 0 {
		t.Errorf("nomerges %s with nothing registered; was 1", f.merges())
	}
	s = f.daemonOn(record, true)
	f.asked = nil
	s.settle(t.Context())
	if len(f.asked) != 0 {
		t.Errorf("asked to unregister %v, where nothing is", f.asked)
	}
}

// TestSharingGone: memory that its client has not any more, or that never was on record with its
// index, is unregistered once the device serves, and not before.
func TestSharingGone(t *testing.T) {
	f, record := newFakeDriver(t), filepath.Join(t.TempDir(), "record")
	stays, leaves, late := newSharingClient(t, 1), newSharingClient(t, 2), newSharingClient(t, 3)
	s := f.daemonOn(record, false)
	for _, c := range []*sharingClient{leaves, stays} {
		_, err := s.add(t.Context(), c.who, c.view)
		must(t, err)
	}
	f.die = true
	func() {
		defer func() {
			if recover() != errDied {
				t.Error("it did not die")
			}
		}()
		_, _ = s.add(t.Context(), late.who, late.view)
	}()
	f.die = false
	must(t, leaves.region.Close())
	must(t, leaves.view.Close())
	s = f.daemonOn(record, true)
	if s.table.at(0) != nil || s.table.at(2) != nil || len(f.asked) != 0 {
		t.Errorf("before it serves: unregistered %v", f.asked)
	}
	sees(t, s.table.at(1), 1)
	s.settle(t.Context())
	if len(f.registered) != 1 || f.registered[1] == nil {
		t.Errorf("registered %v, want 1 alone", f.registered)
	}
	r, err := s.add(t.Context(), late.who, late.view)
	must(t, err)
	if r.index != 0 {
		t.Errorf("index %d, want 0", r.index)
	}
}

// TestSharingOthers: memory of a process that has only the number of the client, or of another user,
// is not taken for the client's.
func TestSharingOthers(t *testing.T) {
	f, record := newFakeDriver(t), filepath.Join(t.TempDir(), "record")
	c := newSharingClient(t, 1)
	s := f.daemonOn(record, false)
	other := c.who
	other.Start++
	_, err := s.add(t.Context(), other, c.view)
	must(t, err)
	s = f.daemonOn(record, true)
	if s.table.at(0) != nil || !slices.Equal(s.mu.stale, []int{0}) {
		t.Error("memory was taken from a process that began at another time")
	}
	s.settle(t.Context())
	f.none()
	// Of another user: found, but not given to who has come back.
	_, err = s.add(t.Context(), c.who, c.view)
	must(t, err)
	s = f.daemonOn(record, true)
	sees(t, s.table.at(0), 1)
	stranger := c.who
	stranger.UID++
	r, err := s.add(t.Context(), stranger, c.view)
	if err == nil && r.index == 0 {
		t.Error("another user has the registration")
	}
}

// TestSharingHandOver: a device that waits for the next daemon is not touched any more.
func TestSharingHandOver(t *testing.T) {
	f, record := newFakeDriver(t), filepath.Join(t.TempDir(), "record")
	c := newSharingClient(t, 1)
	s := f.daemonOn(record, false)
	r, err := s.add(t.Context(), c.who, c.view)
	must(t, err)
	s.handOver()
	if err := s.drop(t.Context(), r); !errors.Is(err, errHandedOver) {
		t.Errorf("drop: %v", err)
	}
	if _, err := s.add(t.Context(), c.who, newSharingClient(t, 2).view); !errors.Is(err, errNotShared) {
		t.Errorf("add: %v", err)
	}
	s.tend(t.Context())
	s.settle(t.Context())
	s.end()
	if len(f.asked) != 0 || len(f.registered) != 1 {
		t.Errorf("registered %v, asked to unregister %v", f.registered, f.asked)
	}
	next := f.daemonOn(record, true)
	sees(t, next.table.at(0), 1)
	next.end()
	if _, err := os.Stat(record); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record has outlived the device: %v", err)
	}
	if must(t, next.drop(t.Context(), r)); len(f.asked) != 0 {
		t.Error("a device that is gone was told something")
	}
}

// TestSharingReused: the daemon dies between unregistering memory and saying so. The index goes to another
// client, which must not lose it when the first one's memory is given up.
func TestSharingReused(t *testing.T) {
	f, record := newFakeDriver(t), filepath.Join(t.TempDir(), "record")
	one, two := newSharingClient(t, 1), newSharingClient(t, 2)
	s := f.daemonOn(record, false)
	_, err := s.add(t.Context(), one.who, one.view)
	must(t, err)
	delete(f.registered, 0)
	s = f.daemonOn(record, true)
	r, err := s.add(t.Context(), two.who, two.view)
	must(t, err)
	if r.index != 0 || s.count() != 1 || len(s.mu.list) != 1 {
		t.Fatalf("index %d, %d registered, %d known", r.index, s.count(), len(s.mu.list))
	}
	sees(t, s.table.at(0), 2)
	// The same of an index of which it was only not known whose it was.
	must(t, os.Remove(record))
	delete(f.registered, 0)
	s = f.daemonOn(record, true)
	_, err = s.add(t.Context(), two.who, two.view)
	must(t, err)
	s.settle(t.Context())
	if f.registered[0] == nil {
		t.Error("settle has taken memory that a client has")
	}
}

// TestSharingLayout: a client that has changed the layout since is not served by the old one.
func TestSharingLayout(t *testing.T) {
	h := newHolder(t, "open")
	for _, change := range []func(*sharedBuffer){
		func(b *sharedBuffer) { b.DataBytes -= 4096 },
		func(b *sharedBuffer) { b.DataBytes += 4096 },
		func(b *sharedBuffer) { b.Entries = 64 },
	} {
		b := h.buffer
		change(&b)
		if v, err := b.take(); err == nil {
			t.Errorf("%+v was taken", b)
			_ = v.Close()
		}
	}
}

// TestSharingBusy: what cannot be unregistered at the time is later, when the client has ended.
func TestSharingBusy(t *testing.T) {
	f, record := newFakeDriver(t), filepath.Join(t.TempDir(), "record")
	h := newHolder(t, "open")
	v, err := h.buffer.take()
	must(t, err)
	s := f.daemonOn(record, false)
	r, err := s.add(t.Context(), h.buffer.Owner, v)
	must(t, err)
	h.end()
	f.busy = true
	if err := s.drop(t.Context(), r); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drop: %v", err)
	}
	s.orphan(r)
	sees(t, s.table.at(0), holderByte) // a request may still have it
	f.busy = false
	s.tend(t.Context())
	f.none()
	// The same of indices that nobody has memory of.
	_, err = s.add(t.Context(), h.buffer.Owner, v)
	must(t, err)
	s = f.daemonOn(record, true)
	f.busy = true
	s.settle(t.Context())
	next := f.daemonOn(record, true)
	f.busy = false
	next.settle(t.Context())
	f.none()
	f.asked = nil
	if f.daemonOn(record, true).settle(t.Context()); len(f.asked) != 0 {
		t.Errorf("asked to unregister %v once more", f.asked)
	}
}

// TestSharingRecord: without a record, or with one that cannot be read, what may be registered is
// unregistered, and clients begin anew. A record that cannot be written leaves nothing registered.
func TestSharingRecord(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":99}`} {
		f, record := newFakeDriver(t), filepath.Join(t.TempDir(), "record")
		c := newSharingClient(t, 1)
		s := f.daemonOn(record, false)
		_, err := s.add(t.Context(), c.who, c.view)
		must(t, err)
		must(t, os.WriteFile(record, []byte(text), 0o600))
		if text == "" {
			must(t, os.Remove(record))
		}
		s = f.daemonOn(record, true)
		s.settle(t.Context())
		f.none()
		if f.merges() != "0" {
			t.Errorf("nomerges %s after the record was lost", f.merges())
		}
	}
	f, c := newFakeDriver(t), newSharingClient(t, 1)
	s := f.daemonOn(filepath.Join(t.TempDir(), "no-folder", "record"), false)
	if _, err := s.add(t.Context(), c.who, c.view); err == nil {
		t.Error("memory was registered without a record")
	}
	f.none()
}

// TestProcessMemory finds the memory of another process as long as that lives, whether it has it open or
// only mapped.
func TestProcessMemory(t *testing.T) {
	for _, kind := range []string{"open", "mapped"} {
		t.Run(kind, func(t *testing.T) {
			h := newHolder(t, kind)
			v, err := h.buffer.take()
			if kind == "mapped" && err != nil && !mayLookAtMappings() {
				t.Log("this process may not open what others have mapped")
			} else {
				must(t, err)
				sees(t, v, holderByte)
				must(t, v.Close())
			}
			p, wrong := h.buffer.Owner, h.buffer.Memory
			wrong.Born++
			if fd, err := p.memory(wrong); !errors.Is(err, errGone) {
				t.Errorf("other memory: %d, %v", fd, err)
			}
			h.end()
			if fd, err := p.memory(h.buffer.Memory); !errors.Is(err, errGone) {
				t.Errorf("memory of a dead process: %d, %v", fd, err)
			}
		})
	}
}

// mayLookAtMappings: files in map_files are for privileged processes.
func mayLookAtMappings() bool {
	list, err := os.ReadDir("/proc/self/map_files")
	if err != nil || len(list) == 0 {
		return false
	}
	fd, err := unix.Open("/proc/self/map_files/"+list[0].Name(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
