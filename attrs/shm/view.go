package shm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm/hostile"
)

// View is a server's side of a region that a client has made. Nothing in it is trusted, and nothing
// that the client does to its memory makes a method panic; where memory is gone they return
// [ErrFault].
//
// Methods may be called from several threads, but for those of the ring, which are for one.
type View struct {
	memory
	size int64
	id   Identity
}

// Open checks and maps the memory behind a descriptor, which stays the caller's. A region with more
// than maxBytes of data is refused.
func Open(fd int, maxBytes int64) (*View, error) {
	size, err := checkFile(fd)
	if err != nil {
		return nil, err
	}
	id, err := Identify(fd)
	if err != nil {
		return nil, err
	}
	if limit := layoutOf(pagesFor(maxBytes), MaxEntries).size; size > limit {
		return nil, fmt.Errorf("%w: %d bytes in all, %d at most", ErrTooLarge, size, limit)
	}
	mem, err := mapMemory(fd, size)
	if err != nil {
		return nil, err
	}
	v := &View{memory: memory{mem: mem}, size: size, id: id}
	var head [headerBytes]byte
	if err = v.copyOut(head[:], 0); err == nil {
		err = v.decode(head[:], size)
	}
	if err == nil && int64(v.pages)*PageBytes > maxBytes {
		err = fmt.Errorf("%w: %d bytes of data, %d at most", ErrTooLarge,
			int64(v.pages)*PageBytes, maxBytes)
	}
	if err != nil {
		_ = v.Close()
		return nil, err
	}
	return v, nil
}

func pagesFor(bytes int64) int { return int(min(max(bytes, 0), MaxPages*PageBytes) / PageBytes) }

// checkFile makes sure that a descriptor is a memfd that keeps its size. Only files of tmpfs have
// seals, so this is no file of a filesystem that could let a reader wait (FUSE, NFS). Huge pages are
// refused: there may be none left when one is touched.
func checkFile(fd int) (size int64, err error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&needSeals != needSeals {
		return 0, ErrSeals
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("examine shared memory: %w", err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return 0, ErrSeals
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("examine shared memory: %w", err)
	}
	if st.Size < headerBytes {
		return 0, fmt.Errorf("%w: %d bytes", ErrLayout, st.Size)
	}
	return st.Size, nil
}

// Close unmaps the memory. Nothing may be under way on it.
func (v *View) Close() error {
	if v.mem == nil {
		return nil
	}
	err := unix.Munmap(v.mem)
	v.mem = nil
	return err
}

// Identity tells the memory from all others.
func (v *View) Identity() Identity { return v.id }

// Bytes is the size of the whole region, DataBytes that of the data area and DataOffset where in the
// memory it begins.
func (v *View) Bytes() int64 { return v.size }

// DataBytes is the size of the data area.
func (v *View) DataBytes() int64 { return int64(v.pages) * PageBytes }

// DataOffset is where in the memory the data area begins; a multiple of PageBytes.
func (v *View) DataOffset() int64 { return v.data }

// Entries is the size of the ring, 0 without one.
func (v *View) Entries() int { return v.entries }

// Holds says whether n bytes from byte off on lie in the data area.
func (v *View) Holds(off, n int64) bool { return v.holds(off, n) }

// Data is n bytes of the data area as they are mapped, for system calls and registration, which
// report a fault as EFAULT. To touch them otherwise can end the process: see CopyOut.
func (v *View) Data(off, n int64) ([]byte, error) {
	if !v.holds(off, n) {
		return nil, ErrPlace
	}
	off += v.data
	return v.mem[off : off+n : off+n], nil
}

// CopyOut copies data of the client's to dst, CopyIn src to the client. off is a place in the data
// area.
func (v *View) CopyOut(dst []byte, off int64) error {
	if !v.holds(off, int64(len(dst))) {
		return ErrPlace
	}
	return v.copyOut(dst, v.data+off)
}

// CopyIn copies src to the data area.
func (v *View) CopyIn(off int64, src []byte) error {
	if !v.holds(off, int64(len(src))) {
		return ErrPlace
	}
	return v.copyIn(v.data+off, src)
}

// copyOut and copyIn are given places in the whole memory.
func (v *View) copyOut(dst []byte, at int64) error {
	return hostile.Copy(dst, v.mem[at:at+int64(len(dst))])
}

func (v *View) copyIn(at int64, src []byte) error {
	return hostile.Copy(v.mem[at:at+int64(len(src))], src)
}
