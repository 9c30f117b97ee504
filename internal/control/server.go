package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/report"
)

// Handler carries out one command. ctx ends when the client hangs up or the server closes.
type Handler func(ctx context.Context, args json.RawMessage, progress ProgressFunc) (any, error)

// Server answers clients on a socket.
type Server struct {
	l        *net.UnixListener
	handlers map[string]Handler
	ctx      context.Context
	cancel   context.CancelFunc
	clients  sync.WaitGroup
}

const (
	// maxRequest is more than any request needs, and requestTime more than any client takes to
	// send one.
	maxRequest  = 64 << 10
	requestTime = 10 * time.Second
	writeTime   = 30 * time.Second
)

// Listen makes the socket, accessible to the owner only. A socket file that a dead daemon left is
// replaced; the caller has made sure that there is no live one.
func Listen(path string, handlers map[string]Handler) (*Server, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	// Who connects before the mode is set is asked who it is, as everybody is.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	s := &Server{l: l, handlers: handlers}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Serve answers until Close.
func (s *Server) Serve() {
	for {
		conn, err := s.l.AcceptUnix()
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: it passes
			continue
		}
		s.clients.Go(func() { s.serve(conn) })
	}
}

// Close takes no more clients, removes the socket and lets the commands under way answer, but for
// those that wait.
func (s *Server) Close() {
	s.cancel()
	_ = s.l.Close()
	s.clients.Wait()
}

func (s *Server) serve(conn *net.UnixConn) {
	defer conn.Close()
	out := json.NewEncoder(conn)
	send := func(r Reply) {
		_ = conn.SetWriteDeadline(time.Now().Add(writeTime))
		_ = out.Encode(r)
	}
	if err := checkPeer(conn); err != nil {
		send(Reply{Error: ReportOf(err)})
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(requestTime))
	in := bufio.NewReader(io.LimitReader(conn, maxRequest))
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	var req Request
	if err := json.Unmarshal(line, &req); err != nil {
		send(Reply{Error: report.Misuse("request is no JSON: %v", err)})
		return
	}
	h := s.handlers[req.Command]
	switch {
	case req.Version != Version:
		send(Reply{Error: report.Fail(req.Command, fmt.Sprintf(
			"the daemon speaks version %d of the protocol and the command version %d", Version,
			req.Version), "restart the daemon: the versions of ubcache differ")})
		return
	case h == nil:
		send(Reply{Error: report.Fail(req.Command, "the daemon does not know this command",
			"restart the daemon: the versions of ubcache differ")})
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	_ = conn.SetReadDeadline(time.Time{})
	go func() {
		// Clients send nothing more, so whatever ends this read is the client's end.
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	result, err := h(ctx, req.Args, func(p Progress) {
		if b, err := json.Marshal(p); err == nil {
			send(Reply{Progress: b})
		}
	})
	if err != nil {
		send(Reply{Error: ReportOf(err)})
		return
	}
	b, err := json.Marshal(result)
	if err != nil {
		send(Reply{Error: ReportOf(err)})
		return
	}
	send(Reply{Result: b})
}

// ReportOf makes any error one that travels.
func ReportOf(err error) *report.Error {
	var e *report.Error
	if errors.As(err, &e) && e.Error() == err.Error() {
		return e
	}
	return &report.Error{Code: report.CodeOf(err), Why: err.Error()}
}

// checkPeer lets in root and the user that the daemon runs as.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, cerr); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return report.Refuse("", "only root may talk to the daemon", "")
	}
	return nil
}
