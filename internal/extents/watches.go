package extents

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watchMask is what is wanted to be known of a folder: of the files in it what may change where their
// data is, of the names in it all changes.
const watchMask = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF |
	unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW

// change is a name in a watched folder of which the kernel has told something; the empty name is the
// folder itself.
type change struct {
	watch int32
	name  string
}

// changesMax is how many changes are kept; more make it look everywhere.
const changesMax = 1 << 16

// watches are the inotify watches of all trees. Two trees may have the same folder, and then share
// a watch.
type watches struct {
	f     *os.File
	users map[int32][]*folder // belongs to the resolver's goroutine

	wake chan struct{} // has an element when there are changes
	mu   struct {
		sync.Mutex
		changes map[change]uint32 // with the events
		lost    bool
	}
	done chan struct{}
}

func newWatches() (*watches, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watches{
		f: os.NewFile(uintptr(fd), "inotify"), users: map[int32][]*folder{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	w.mu.changes = map[change]uint32{}
	go w.read()
	return w, nil
}

// close ends the watching.
func (w *watches) close() {
	_ = w.f.Close()
	<-w.done
}

// add watches a folder. One that is watched already may be another by now.
func (w *watches) add(d *folder) {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return
	}
	wd := 0
	if cerr := raw.Control(func(fd uintptr) {
		wd, err = unix.InotifyAddWatch(int(fd), d.path, watchMask)
	}); cerr != nil {
		err = cerr
	}
	if err == nil && int32(wd) == d.watch {
		return
	}
	w.remove(d)
	switch {
	case err == nil:
		d.watch = int32(wd)
		w.users[d.watch] = append(w.users[d.watch], d)
	case errors.Is(err, syscall.ENOSPC):
		d.watch = noWatch
		d.tree.unwatched++
		d.tree.changed = true
	}
}

// noWatch is the watch of a folder that the kernel has no watch for.
const noWatch = -1

// remove ends the watch of a folder if it was its last user.
func (w *watches) remove(d *folder) {
	wd := d.watch
	d.watch = 0
	if wd == noWatch {
		d.tree.unwatched--
		d.tree.changed = true
	}
	if wd <= 0 {
		return
	}
	list := slices.DeleteFunc(w.users[wd], func(o *folder) bool { return o == d })
	if len(list) > 0 {
		w.users[wd] = list
		return
	}
	delete(w.users, wd)
	if raw, err := w.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) })
	}
}

// take returns the changes so far; lost says that there were others.
func (w *watches) take() (list map[change]uint32, lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list, lost = w.mu.changes, w.mu.lost
	w.mu.changes, w.mu.lost = map[change]uint32{}, false
	return list, lost
}

// read collects what the kernel tells, at once, so that its queue does not overflow.
func (w *watches) read() {
	defer close(w.done)
	b := make([]byte, 64<<10)
	for {
		n, err := w.f.Read(b)
		if err != nil {
			return
		}
		w.note(b[:n])
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// note enters events: watch, mask, cookie, length of the name (4 bytes each), the name with zeroes
// behind it.
func (w *watches) note(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) >= unix.SizeofInotifyEvent {
		n := binary.NativeEndian
		wd, mask, size := int32(n.Uint32(b)), n.Uint32(b[4:]), int(n.Uint32(b[12:]))
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:][:size], []byte{0})
		b = b[unix.SizeofInotifyEvent+size:]
		if mask&unix.IN_Q_OVERFLOW != 0 || len(w.mu.changes) >= changesMax {
			w.mu.lost = true
			continue
		}
		w.mu.changes[change{wd, string(name)}] |= mask
	}
}
