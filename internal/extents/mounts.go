package extents

import (
	"os"

	"golang.org/x/sys/unix"
)

// mounts tells when a filesystem has been mounted or unmounted, as far as this process sees it.
type mounts struct {
	wake chan struct{} // has an element after a change
	stop *os.File      // closed to end it
	done chan struct{}
}

func watchMounts() (*mounts, error) {
	// Not by the os package: Go's poller would take the news.
	info, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		_ = unix.Close(info)
		return nil, err
	}
	m := &mounts{wake: make(chan struct{}, 1), stop: w, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		defer unix.Close(info)
		defer r.Close()
		m.watch(int32(info), int32(r.Fd()))
	}()
	return m, nil
}

func (m *mounts) watch(info, stop int32) {
	for {
		list := []unix.PollFd{{Fd: info, Events: unix.POLLPRI}, {Fd: stop, Events: unix.POLLIN}}
		_, err := unix.Poll(list, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil || list[1].Revents != 0 {
			return
		}
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

func (m *mounts) close() {
	_ = m.stop.Close()
	<-m.done
}
