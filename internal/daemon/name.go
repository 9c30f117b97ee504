package daemon

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/report"
)

// takeName makes sure that one daemon runs a cache. The lock goes away with the process that has
// it: one that answers on its socket is running, one that does not is starting or dying, and that
// is waited for.
func (in *Instance) takeName(ctx context.Context) error {
	path := filepath.Join(in.dir, in.opts.Name+".lock")
	ctx, cancel := context.WithTimeout(ctx, in.opts.Wait)
	defer cancel()
	for first := true; ; first = false {
		f, pid, err := lockName(path)
		if err != nil {
			return report.Wrap("lock "+path, err, "")
		}
		if f != nil {
			in.lock = f
			return nil
		}
		if answers(in.Socket()) || ctx.Err() != nil {
			return report.Refuse("start cache "+in.opts.Name, "already running as process "+pid,
				"ubcache status shows it")
		}
		if first {
			in.opts.Note("waiting for process " + pid + ", which starts or ends")
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// pingTime is how long a daemon may take to answer.
const pingTime = 2 * time.Second

// answers says whether a daemon lives. One that is being killed still takes connections.
func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(pingTime))
	if _, err := conn.Write([]byte("{}\n")); err != nil {
		return false
	}
	n, _ := conn.Read(make([]byte, 1)) // any answer will do: that it speaks another version
	return n > 0
}

// lockName takes the lock and writes our process number into it; f is nil if somebody has it.
func lockName(path string) (f *os.File, pid string, err error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_CLOEXEC | unix.O_NOFOLLOW
	if f, err = os.OpenFile(path, flags, 0o600); err != nil {
		return nil, "", err
	}
	switch err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
	case unix.EWOULDBLOCK:
		text, err := os.ReadFile(path)
		_ = f.Close()
		return nil, strings.TrimSpace(string(text)), err
	default:
		_ = f.Close()
		return nil, "", err
	}
	// Its last owner may have removed it after we opened it.
	have, err1 := f.Stat()
	now, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(have, now) {
		_ = f.Close()
		return lockName(path)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, "", err
	}
	return f, "", nil
}
