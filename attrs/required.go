package attrs

import "golang.org/x/sys/unix"

// The errnos that attributes make a request fail with. All of them pass through ublk and the block
// layer unchanged.
const (
	// ErrnoRefused: a required attribute is not handled. The natural choice would be
	// EOPNOTSUPP, but io_uring issues a request that fails with EOPNOTSUPP or EAGAIN a second
	// time, from a worker (io_rw_should_reissue), so that it would be seen, counted and refused
	// twice. EREMOTEIO is the block layer's "the target refused the command" (BLK_STS_TARGET),
	// what a disk's ILLEGAL REQUEST becomes. Neither io_uring nor dm-multipath (blk_path_error)
	// tries again after it.
	ErrnoRefused = unix.EREMOTEIO
	// ErrnoInvalid: a required attribute is invalid.
	ErrnoInvalid = unix.EINVAL
	// ErrnoMismatch: the data does not match the checksums given; nothing was stored or given out.
	ErrnoMismatch = unix.EILSEQ
	// ErrnoDeadline: the deadline is over.
	ErrnoDeadline = unix.ETIME
)

// CheckRequired says with which errno the request has to fail because of a required attribute,
// and for which id; 0 if it may go on. It is asked before the request has any effect, when r
// has the answers as they will be. Of several the lowest id counts; 0 stands for a set that
// could not be read although something in it was required.
func (s *Set) CheckRequired(r *Results) (ID, unix.Errno) {
	if s.frameRequired {
		if s.frame == ReasonVersion {
			return 0, ErrnoRefused
		}
		return 0, ErrnoInvalid
	}
	for left := s.required | s.badRequired; left != 0; left &= left - 1 {
		id := lowest(left)
		if s.badRequired.has(id) {
			return id, ErrnoInvalid
		}
		if errno := requiredErrno(r.answer[id].Status); errno != 0 {
			return id, errno
		}
	}
	for i := range int(s.nUnknown) {
		u := &s.unknown[i]
		if !u.required {
			continue
		}
		if errno := requiredErrno(r.For(u.id).Status); errno != 0 {
			return u.id, errno
		}
	}
	return 0, 0
}

func requiredErrno(st Status) unix.Errno {
	switch st {
	case Handled:
		return 0
	case Invalid:
		return ErrnoInvalid
	}
	return ErrnoRefused
}
