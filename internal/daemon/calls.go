package daemon

import (
	"errors"
	"sync"

	"ubcache/cache"
)

// threadCalls are functions that other goroutines have run on a lane's thread.
type threadCalls struct {
	mu struct {
		sync.Mutex
		list []func()
	}
}

// do has f run on the thread, which wake makes call run, and waits for it. ended is closed when the thread
// calls run no more.
func (c *threadCalls) do(f func() error, wake func(), ended <-chan struct{}) error {
	result := make(chan error, 1)
	c.mu.Lock()
	c.mu.list = append(c.mu.list, func() { result <- f() })
	c.mu.Unlock()
	wake()
	select {
	case err := <-result:
		return err
	case <-ended:
		return errors.New("the loop has ended")
	}
}

func (c *threadCalls) run() {
	c.mu.Lock()
	list := c.mu.list
	c.mu.list = nil
	c.mu.Unlock()
	for _, f := range list {
		f()
	}
}

// quiet implements laneThread.
func (l *loop) quiet(id cache.BackingID) bool { return l.lane.Quiet(id) }

// do runs f on the queue's thread and waits for it.
func (h *queue) do(f func() error) error { return h.calls.do(f, h.q.Wake, h.ended) }

// quiet implements laneThread.
func (h *queue) quiet(id cache.BackingID) bool { return id != h.backing || h.lane.Quiet(id) }

// setFile implements laneThread.
func (h *queue) setFile(id cache.BackingID, dev device) error {
	old := h.files[id]
	h.files[id] = noDevice
	if old.fd >= 0 {
		if err := h.q.RemoveFile(old.file); err != nil {
			return err
		}
	}
	file, err := h.q.AddFile(dev.fd)
	if err != nil {
		return err
	}
	h.files[id] = deviceFile{file: file, device: dev}
	return nil
}
