package extents

import (
	"encoding/gob"
	"errors"
	"os"
	"os/exec"
	"sync"
	"time"
)

// command is what a Client sends to its process.
type command struct {
	Watch *Spec
	Drop  uint64 // if Watch is nil
}

// Client runs a Resolver in another process and starts a new one if it ends. There is a process only
// as long as there is something to watch. None of its methods waits for the process.
type Client struct {
	command func() *exec.Cmd
	report  func(Update)

	mu struct {
		sync.Mutex
		specs  map[uint64]Spec
		unsent []command
		proc   *process
		closed bool
	}
	running sync.WaitGroup
}

// process is one process of a client.
type process struct {
	wake chan struct{} // has an element when something is to be sent
	quit chan struct{} // closed when it is to end
	once sync.Once
}

func (p *process) stop() { p.once.Do(func() { close(p.quit) }) }

// NewClient makes a client whose processes call [Serve] on their standard input and output. Updates
// are reported on a goroutine of its own, and none after Close.
func NewClient(command func() *exec.Cmd, report func(Update)) *Client {
	c := &Client{command: command, report: report}
	c.mu.specs = map[uint64]Spec{}
	return c
}

// Watch begins to watch a file or folder, as [Resolver.Watch] does.
func (c *Client) Watch(s Spec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return
	}
	c.mu.specs[s.ID] = s
	if c.mu.proc == nil {
		c.mu.proc = &process{wake: make(chan struct{}, 1), quit: make(chan struct{})}
		p := c.mu.proc
		c.running.Go(func() { c.keep(p) })
		return // it begins with all there is
	}
	c.send(command{Watch: &s})
}

// Drop ends the watching of a Spec by its ID. An update that is under way may still come.
func (c *Client) Drop(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.mu.specs[id]; !ok {
		return
	}
	delete(c.mu.specs, id)
	if len(c.mu.specs) == 0 {
		c.mu.proc.stop()
		c.mu.proc = nil
		return
	}
	c.send(command{Drop: id})
}

// Close ends the process.
func (c *Client) Close() {
	c.mu.Lock()
	c.mu.closed = true
	if c.mu.proc != nil {
		c.mu.proc.stop()
		c.mu.proc = nil
	}
	c.mu.Unlock()
	c.running.Wait()
}

// send queues a command. c.mu is held.
func (c *Client) send(cmd command) {
	c.mu.unsent = append(c.mu.unsent, cmd)
	select {
	case c.mu.proc.wake <- struct{}{}:
	default:
	}
}

// Times of a client.
const (
	// restartAfter is how long after the end of a process another one is started.
	restartAfter = time.Second
	// endTime is how long a process may take to end by itself.
	endTime = 100 * time.Millisecond
)

// keep runs one process after the other until p is stopped.
func (c *Client) keep(p *process) {
	for {
		err := c.runOnce(p)
		select {
		case <-p.quit:
			return
		default:
		}
		c.lost(p, err)
		select {
		case <-p.quit:
			return
		case <-time.After(restartAfter):
		}
	}
}

// lost reports that nothing is known of what is watched.
func (c *Client) lost(p *process, err error) {
	problem := "the process that watches files has ended"
	if err != nil {
		problem += ": " + err.Error()
	}
	c.mu.Lock()
	var ids []uint64
	if c.mu.proc == p {
		for id := range c.mu.specs {
			ids = append(ids, id)
		}
	}
	c.mu.Unlock()
	for _, id := range ids {
		c.report(Update{ID: id, Problem: problem})
	}
}

// runOnce starts a process, tells it all there is to watch, and reports what it finds until it ends.
func (c *Client) runOnce(p *process) error {
	cmd := c.command()
	in, toProc, err := os.Pipe()
	if err != nil {
		return err
	}
	defer toProc.Close()
	fromProc, out, err := os.Pipe()
	if err != nil {
		_ = in.Close()
		return err
	}
	defer fromProc.Close()
	cmd.Stdin, cmd.Stdout = in, out
	err = cmd.Start()
	_ = in.Close()
	_ = out.Close()
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // may outlive us: see the package's comment
	received := make(chan struct{})
	go func() {
		defer close(received)
		c.receive(p, fromProc)
	}()
	over := make(chan struct{})
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c.sendAll(p, toProc, over)
	}()
	select {
	case <-p.quit:
		err = nil
	case <-received:
	}
	close(over)
	_ = toProc.Close() // which tells it to end
	<-sent
	select {
	case e := <-ended:
		err = errors.Join(err, e)
	case <-time.After(endTime):
		_ = cmd.Process.Kill()
	}
	_ = fromProc.Close()
	<-received
	return err
}

// sendAll sends the specs there are, then what is queued.
func (c *Client) sendAll(p *process, to *os.File, over chan struct{}) {
	enc := gob.NewEncoder(to)
	c.mu.Lock()
	var list []command
	if c.mu.proc == p {
		c.mu.unsent = nil
		for _, s := range c.mu.specs {
			list = append(list, command{Watch: &s})
		}
	}
	c.mu.Unlock()
	for {
		for _, cmd := range list {
			if enc.Encode(cmd) != nil {
				return
			}
		}
		select {
		case <-over:
			return
		case <-p.wake:
		}
		c.mu.Lock()
		if c.mu.proc == p {
			list, c.mu.unsent = c.mu.unsent, nil
		}
		c.mu.Unlock()
	}
}

// receive reports what comes until the end.
func (c *Client) receive(p *process, from *os.File) {
	dec := gob.NewDecoder(from)
	for {
		var u Update
		if dec.Decode(&u) != nil {
			return
		}
		c.mu.Lock()
		_, wanted := c.mu.specs[u.ID]
		wanted = wanted && c.mu.proc == p
		c.mu.Unlock()
		if wanted {
			c.report(u)
		}
	}
}
