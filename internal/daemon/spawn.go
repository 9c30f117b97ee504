package daemon

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// startMessage is what a starting daemon tells the command that waits for it.
type startMessage struct {
	Note  string          `json:"note,omitempty"`
	Ready *control.Status `json:"ready,omitempty"`
	Error *report.Error   `json:"error,omitempty"`
}

// LogPath is where a daemon that was started in the background logs.
func LogPath(dir, name string) string { return filepath.Join(dir, name+".log") }

// Spawn starts a daemon in the background and waits until its devices are there. args are the
// arguments of this program that run it in the foreground; --ready-fd is added. note is told what
// takes time.
func Spawn(o Options, args []string, note func(string)) (*control.Status, error) {
	file, err := config.Load(o.ConfigPath)
	if err != nil {
		return nil, err
	}
	dir := control.RuntimeDir(file.RuntimeDir)
	if err := control.MakeRuntimeDir(dir); err != nil {
		return nil, err
	}
	logPath := LogPath(dir, o.Name)
	_ = os.Rename(logPath, logPath+".old")
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND | unix.O_NOFOLLOW
	log, err := os.OpenFile(logPath, flags, 0o600)
	if err != nil {
		return nil, report.Wrap("make log", err, "")
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append(args, "--ready-fd=3")...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return nil, report.Wrap("start daemon", err, "")
	}
	st, err := waitReady(r, note)
	if err == nil {
		return st, cmd.Process.Release()
	}
	if werr := cmd.Wait(); errors.Is(err, io.EOF) {
		err = report.Fail("start cache "+o.Name, fmt.Sprintf("the daemon ended: %v", werr),
			"see "+logPath)
	}
	return nil, err
}

// waitReady reads what the daemon says until it is ready or has failed; io.EOF if it says neither.
func waitReady(r io.Reader, note func(string)) (*control.Status, error) {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil, io.EOF
		}
		var m startMessage
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("read the daemon's report: %w", err)
		}
		switch {
		case m.Error != nil:
			return nil, m.Error
		case m.Ready != nil:
			return m.Ready, nil
		default:
			note(m.Note)
		}
	}
}

// Reporter sends to the command that waits for the start of this daemon.
type Reporter struct{ f *os.File }

// NewReporter reports on a descriptor that Spawn has given, or nowhere if it is negative.
func NewReporter(fd int) *Reporter {
	if fd < 0 {
		return &Reporter{}
	}
	unix.CloseOnExec(fd)
	return &Reporter{os.NewFile(uintptr(fd), "ready-"+strconv.Itoa(fd))}
}

func (r *Reporter) send(m startMessage) {
	if r.f != nil {
		_ = json.NewEncoder(r.f).Encode(m)
	}
}

// Note tells what takes time.
func (r *Reporter) Note(s string) { r.send(startMessage{Note: s}) }

// Ready ends the report with success.
func (r *Reporter) Ready(st control.Status) {
	r.send(startMessage{Ready: &st})
	r.close()
}

// Fail ends the report with an error. It tells whether somebody has listened.
func (r *Reporter) Fail(err error) bool {
	heard := r.f != nil
	r.send(startMessage{Error: control.ReportOf(err)})
	r.close()
	return heard
}

func (r *Reporter) close() {
	if r.f != nil {
		_ = r.f.Close()
		r.f = nil
	}
}
