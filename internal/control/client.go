package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"

	"ubcache/internal/report"
)

// ErrNotRunning: nobody listens on the socket.
var ErrNotRunning = errors.New("no daemon is running")

// Call sends a command and waits for its result, which goes to result unless that is nil. Each
// progress line is handed to progress, if there is one. If ctx ends, it hangs up.
func Call(ctx context.Context, socket, command string, args, result any,
	progress ProgressFunc,
) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNotRunning
	case errors.Is(err, fs.ErrPermission):
		return report.Fail("talk to the daemon", "permission denied", "run as root")
	case err != nil:
		return report.Wrap("talk to the daemon", err, "")
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	req := Request{Version: Version, Command: command}
	if args != nil {
		if req.Args, err = json.Marshal(args); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return hungUp(ctx, err)
	}
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return hungUp(ctx, err)
		}
		var r Reply
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		switch {
		case r.Error != nil:
			return r.Error
		case r.Progress != nil:
			var p Progress
			if progress != nil && json.Unmarshal(r.Progress, &p) == nil {
				progress(p)
			}
		default:
			if result == nil {
				return nil
			}
			return json.Unmarshal(r.Result, result)
		}
	}
}

func hungUp(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return report.Fail("talk to the daemon", "it ended before it answered",
			"its log says why; ubcache start brings the devices back")
	}
	return report.Wrap("talk to the daemon", err, "")
}
