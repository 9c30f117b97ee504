package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ubcache/internal/report"
)

func serve(t *testing.T, handlers map[string]Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.sock")
	s, err := Listen(path, handlers)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve()
	t.Cleanup(s.Close)
	return path
}

func TestCall(t *testing.T) {
	path := serve(t, map[string]Handler{
		"echo": func(_ context.Context, args json.RawMessage, progress ProgressFunc) (any, error) {
			progress(Progress{What: "half", LeftBytes: 1, TotalBytes: 2})
			return args, nil
		},
		"refuse": func(context.Context, json.RawMessage, ProgressFunc) (any, error) {
			return nil, report.Refuse("do it", "it would hurt", "do not")
		},
		"fail": func(context.Context, json.RawMessage, ProgressFunc) (any, error) {
			return nil, errors.New("first\nsecond")
		},
	})
	ctx := context.Background()
	var got NameArgs
	var seen []Progress
	err := Call(ctx, path, "echo", NameArgs{"x"}, &got, func(p Progress) { seen = append(seen, p) })
	if err != nil || got.Name != "x" || len(seen) != 1 || seen[0].What != "half" {
		t.Errorf("echo: %+v %+v %v", got, seen, err)
	}
	err = Call(ctx, path, "refuse", nil, nil, nil)
	if report.CodeOf(err) != report.Refused || err.Error() != "do it: it would hurt (do not)" {
		t.Errorf("refuse: %v", err)
	}
	err = Call(ctx, path, "fail", nil, nil, nil)
	if report.CodeOf(err) != report.Failed || strings.Contains(err.Error(), "\n") {
		t.Errorf("fail: %q", err)
	}
	err = Call(ctx, path, "unknown", nil, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("unknown: %v", err)
	}
}

// TestHangUp makes sure that a client that goes away ends the wait of its command.
func TestHangUp(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	path := serve(t, map[string]Handler{
		"wait": func(ctx context.Context, _ json.RawMessage, _ ProgressFunc) (any, error) {
			close(begun)
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-begun
		cancel()
	}()
	if err := Call(ctx, path, "wait", nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("call: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the command goes on")
	}
}

func TestNobody(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.sock")
	if err := Call(context.Background(), path, "x", nil, nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as after kill -9
	_ = l.Close()
	if err := Call(context.Background(), path, "x", nil, nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead daemon's socket: %v", err)
	}
	s, err := Listen(path, nil)
	if err != nil {
		t.Fatalf("replace a dead daemon's socket: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v", info.Mode(), err)
	}
	go s.Serve()
	s.Close()
}

// TestBadRequests sends what no client of ours sends.
func TestBadRequests(t *testing.T) {
	path := serve(t, map[string]Handler{})
	for _, c := range []struct{ send, want string }{
		{"{\"version\":1,\n", "no JSON"},
		{"{\"version\":99,\"command\":\"status\"}\n", "version"},
		{"null\n", "version"},
		{strings.Repeat("x", 2*maxRequest), ""},
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(c.send))
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		_ = conn.Close()
		if c.want == "" {
			continue // all that matters is that the server lives
		}
		var r Reply
		if json.Unmarshal([]byte(line), &r) != nil || r.Error == nil ||
			!strings.Contains(r.Error.Error(), c.want) {
			t.Errorf("%.20q is answered %q", c.send, line)
		}
	}
}

func TestRuntimeDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := MakeRuntimeDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := MakeRuntimeDir(dir); report.CodeOf(err) != report.Refused {
		t.Errorf("a folder that others may write to: %v", err)
	}
	t.Setenv(EnvRuntimeDir, "/x")
	if got := RuntimeDir("/y"); got != "/x" {
		t.Errorf("runtime folder %s", got)
	}
}
