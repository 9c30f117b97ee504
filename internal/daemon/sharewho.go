package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
)

// process is a process that has memory with us, so that it can be told from others that have its number
// later.
type process struct {
	PID int32 `json:"pid"`
	// Start is when it began, in ticks since the boot; 0 if the process is not visible from here, as
	// where it lives in the parent of this PID namespace.
	Start uint64 `json:"start"`
	UID   uint32 `json:"uid"`
}

func processOf(cred unix.Ucred) process {
	p := process{PID: cred.Pid, UID: cred.Uid}
	p.Start, _ = startOf(cred.Pid)
	return p
}

// errGone: the process has ended, or does not have the memory any more.
var errGone = errors.New("its process does not have it any more")

// startOf is field 22 of /proc/PID/stat, counted behind the name, in which there may be anything.
func startOf(pid int32) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// memory returns a descriptor of memory that the process has: open, or mapped only.
func (p process) memory(id shm.Identity) (int, error) {
	if p.Start == 0 {
		return -1, errors.New("its process was not visible from here")
	}
	if start, err := startOf(p.PID); err != nil || start != p.Start {
		return -1, errGone
	}
	at := fmt.Sprintf("/proc/%d", p.PID)
	fd, some := lookIn(at+"/fd", id)
	if fd < 0 {
		fd, _ = lookIn(at+"/map_files", id)
	}
	if fd < 0 && !some {
		// The first thread of a process that was killed has ended, but others wait for their I/O.
		threads, _ := os.ReadDir(at + "/task")
		for i := 0; i < len(threads) && fd < 0; i++ {
			fd, _ = lookIn(at+"/task/"+threads[i].Name()+"/fd", id)
		}
	}
	if fd < 0 {
		return -1, errGone
	}
	return fd, nil
}

// lookIn looks for memory in a folder of links to what a process has; -1 if it is not there. some says
// whether anything is.
func lookIn(dir string, id shm.Identity) (fd int, some bool) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return -1, false // without the right to look, or just ended
	}
	for _, e := range list {
		if fd, ok := openIf(dir+"/"+e.Name(), id); ok {
			return fd, true
		}
	}
	return -1, len(list) > 0
}

// openIf opens a file if it is that memory. What else a process may have open is not touched: a
// descriptor with O_PATH does nothing to what is behind it.
func openIf(path string, id shm.Identity) (int, bool) {
	look, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false
	}
	defer unix.Close(look)
	if got, err := shm.Identify(look); err != nil || got != id {
		return -1, false
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", look), unix.O_RDWR|unix.O_CLOEXEC, 0)
	return fd, err == nil
}
