package ublk

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"ubcache/internal/uring"
	"ubcache/ublk/internal/sys"
)

// CopyOut copies len(dst) bytes of a write request, from byte off of it, to dst. dst may be any
// memory. The request must be with the handler. In mode UserCopy and AutoZeroCopy this is a system
// call.
func (q *Queue) CopyOut(r *Request, off int64, dst []byte) error {
	if r.Data != nil {
		if off < 0 || off+int64(len(dst)) > int64(len(r.Data)) {
			return q.copyError("read", r, off, len(dst), unix.EINVAL)
		}
		copy(dst, r.Data[off:])
		return nil
	}
	return q.pread(r, off, dst, 0)
}

// CopyIn copies src to byte off of a read request.
func (q *Queue) CopyIn(r *Request, off int64, src []byte) error {
	if r.Data != nil {
		if off < 0 || off+int64(len(src)) > int64(len(r.Data)) {
			return q.copyError("write", r, off, len(src), unix.EINVAL)
		}
		copy(r.Data[off:], src)
		return nil
	}
	return q.pwrite(r, off, src, 0)
}

// CopyMetaOut copies metadata that accompanies a write request with the flag HasIntegrity.
func (q *Queue) CopyMetaOut(r *Request, off int64, dst []byte) error {
	return q.pread(r, off, dst, sys.IntegrityFlag)
}

// CopyMetaIn copies metadata to a read request with the flag HasIntegrity.
func (q *Queue) CopyMetaIn(r *Request, off int64, src []byte) error {
	return q.pwrite(r, off, src, sys.IntegrityFlag)
}

// CharFile is /dev/ublkcN as submissions name it. Reading there at CopyOffset gets the data of a
// write request, and writing there sets that of a read request, without a further system call.
func (q *Queue) CharFile() File { return uring.Fixed(charSlot) }

// CopyOffset is where byte off of a request lies in CharFile, in modes UserCopy and AutoZeroCopy.
func (q *Queue) CopyOffset(r *Request, off int64) uint64 {
	return sys.IOBufOffset + uint64(q.id)<<sys.QueueOffset + uint64(r.Tag)<<sys.TagOffset +
		uint64(off)
}

func (q *Queue) pread(r *Request, off int64, b []byte, flag uint64) error {
	for done := 0; done < len(b); {
		pos := int64(q.CopyOffset(r, off+int64(done)) | flag)
		n, err := unix.Pread(q.dev.charFD, b[done:], pos)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return q.copyError("read", r, off, len(b), err)
		}
		if n == 0 {
			return q.copyError("read", r, off, len(b), io.ErrUnexpectedEOF)
		}
		done += n
	}
	return nil
}

func (q *Queue) pwrite(r *Request, off int64, b []byte, flag uint64) error {
	for done := 0; done < len(b); {
		pos := int64(q.CopyOffset(r, off+int64(done)) | flag)
		n, err := unix.Pwrite(q.dev.charFD, b[done:], pos)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return q.copyError("write", r, off, len(b), err)
		}
		if n == 0 {
			return q.copyError("write", r, off, len(b), io.ErrShortWrite)
		}
		done += n
	}
	return nil
}

func (q *Queue) copyError(what string, r *Request, off int64, n int, err error) error {
	return fmt.Errorf("ublk%d: queue %d: %s %d bytes at %d of %v: %w", q.dev.id, q.id, what, n, off,
		r, err)
}
