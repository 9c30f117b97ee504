package shm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Identity tells a client's memory from all other memory of the machine, until it is rebooted. The
// number of an inode alone would not do: the kernel gives it to another file in time.
type Identity struct {
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
	// Born is when the memory was made, in nanoseconds since 1970; 0 before Linux 5.18, which does not
	// say.
	Born  int64 `json:"born"`
	Bytes int64 `json:"bytes"` // of the whole region
}

// Identify is the identity of the memory behind a descriptor, which may be one with O_PATH.
func Identify(fd int) (Identity, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	if err != nil {
		return Identity{}, fmt.Errorf("examine shared memory: %w", err)
	}
	id := Identity{
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino, Bytes: int64(st.Size),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id, nil
}
