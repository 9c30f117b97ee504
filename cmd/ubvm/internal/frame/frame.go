// Package frame is what the host and the guest's init say to each other over one virtio-serial
// port: the job, its streams and its exit status. The console stays free for the kernel, and no
// text of a test can be taken for a status.
package frame

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Port is the virtio-serial port's name.
const Port = "ubvm.0"

// Type says what a frame's payload is.
type Type byte

// Frames from the guest.
const (
	Ready  Type = 'r' // payload: Boot as JSON; the first step starts
	Stdout Type = 'o'
	Stderr Type = 'e'
	Exit   Type = 'x' // payload: Status as JSON; one step has ended
	Done   Type = 'd' // all steps ended, files are on their disks
	Fault  Type = 'f' // payload: text; the init itself cannot go on
)

// Frames from the host.
const (
	Stdin  Type = 'i' // empty payload: end of file
	Resize Type = 'w' // payload: two little-endian uint16, rows and columns
	Quit   Type = 'q' // time is up: show what is stuck
)

// A Job is what the guest runs, in job.json on the job disk.
type Job struct {
	Steps []Step   `json:"steps"`
	Env   []string `json:"env"`
	TTY   bool     `json:"tty"` // one step, on a terminal
}

// A Step is one command.
type Step struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Dir  string   `json:"dir"` // relative to the job disk
}

// Boot describes a guest that is up.
type Boot struct {
	Kernel        string  `json:"kernel"`
	UptimeSeconds float64 `json:"uptimeSeconds"`
}

// A Status is how a step ended: an exit code as a shell would give it.
type Status struct {
	Step int    `json:"step"`
	Code int    `json:"code"`
	Text string `json:"text"` // "signal: killed" and the like, or why it did not start
}

// MaxBytes limits a payload.
const MaxBytes = 64 << 10

var errTooLong = errors.New("frame longer than its limit")

// Writer writes whole frames; any number of goroutines may use it.
type Writer struct {
	mu struct {
		sync.Mutex
		w io.Writer
	}
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer {
	fw := &Writer{}
	fw.mu.w = w
	return fw
}

// Write sends one frame.
func (w *Writer) Write(t Type, payload []byte) error {
	if len(payload) > MaxBytes {
		return errTooLong
	}
	buf := make([]byte, 5, 5+len(payload))
	buf[0] = byte(t)
	binary.LittleEndian.PutUint32(buf[1:], uint32(len(payload)))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.mu.w.Write(append(buf, payload...))
	return err
}

// WriteJSON sends v as a frame's payload.
func (w *Writer) WriteJSON(t Type, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.Write(t, payload)
}

// Stream returns an io.Writer that sends everything as frames of one type.
func (w *Writer) Stream(t Type) io.Writer { return stream{w, t} }

type stream struct {
	w *Writer
	t Type
}

func (s stream) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		end := min(len(p), n+MaxBytes)
		if err := s.w.Write(s.t, p[n:end]); err != nil {
			return n, err
		}
		n = end
	}
	return len(p), nil
}

// Read reads one frame.
func Read(r io.Reader) (Type, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[1:])
	if n > MaxBytes {
		return 0, nil, fmt.Errorf("%w: %d bytes", errTooLong, n)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fmt.Errorf("frame cut short: %w", err)
	}
	return Type(head[0]), payload, nil
}
