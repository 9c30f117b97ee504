package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// lookUpUser finds the number of the rule's user. Without one the rule matches nobody.
func (r *rule) lookUpUser() {
	if r.conf.UID == "" {
		return
	}
	text := r.conf.UID
	if _, err := strconv.ParseUint(text, 10, 32); err != nil {
		u, err := user.Lookup(text)
		if err != nil {
			r.noUser = fmt.Sprintf("there is no user %q", text)
			return
		}
		text = u.Uid
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		r.noUser = fmt.Sprintf("%q is not the number of a user", text)
		return
	}
	r.parsed.UID = uint32(n)
}

// lookUpCgroups finds the ids of a cgroup and of all below it. The id of a cgroup is the inode number
// of its folder.
func lookUpCgroups(text string) ([]uint64, error) {
	if text == "" {
		return nil, nil
	}
	if id, err := strconv.ParseUint(text, 10, 64); err == nil {
		return []uint64{id}, nil
	}
	return cgroupsBelow(text)
}

// setCgroups takes what lookUpCgroups has found, and says whether it is something new.
func (r *rule) setCgroups(ids []uint64, err error) bool {
	r.noCgroup = ""
	if err != nil {
		r.noCgroup = fmt.Sprintf("cgroup %s: %v", r.conf.Cgroup, err)
	}
	changed := !slices.Equal(ids, r.parsed.Cgroups)
	r.parsed.Cgroups = ids
	return changed
}

// cgroupsMax is how many cgroups a rule can have.
const cgroupsMax = 1 << 16

// cgroupOf is the id of a cgroup.
func cgroupOf(path string) (id uint64, err error) {
	var sf unix.Statfs_t
	if err := unix.Statfs(path, &sf); err != nil {
		return 0, err
	}
	if sf.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, errors.New("not a folder of the cgroup filesystem, version 2")
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, errors.New("not a folder of the cgroup filesystem, version 2")
	}
	return st.Ino, nil
}

func cgroupsBelow(path string) (ids []uint64, err error) {
	if _, err := cgroupOf(path); err != nil {
		return nil, err
	}
	err = filepath.WalkDir(path, func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() { // it may go away meanwhile
			return nil
		}
		var st unix.Stat_t
		if unix.Stat(at, &st) == nil {
			ids = append(ids, st.Ino)
		}
		if len(ids) > cgroupsMax {
			return fmt.Errorf("it has more than %d cgroups", cgroupsMax)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	return ids, nil
}

// refreshCgroups finds cgroups that have come or gone.
func (s *ruleSet) refreshCgroups() {
	var list []*rule
	s.mu.Lock()
	for d := range s.mu.devices {
		for _, r := range d.list {
			if r.conf.Cgroup != "" {
				list = append(list, r)
			}
		}
	}
	s.mu.Unlock()
	for _, r := range list {
		ids, err := lookUpCgroups(r.conf.Cgroup)
		s.mu.Lock()
		if r.setCgroups(ids, err) {
			s.compile(r.of)
		}
		s.mu.Unlock()
	}
}
