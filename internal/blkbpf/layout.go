package blkbpf

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// layout is where the running kernel has what the program reads: offsets in bytes, and bits of
// request flags.
type layout struct {
	rqQueue, rqHctx, rqFlags, rqTag, rqBytes, rqSector, rqBio int16

	queueDisk, diskName, hctxNumber int16

	bioPrio, bioHint int16

	// All below are 0, and the booleans false, in a kernel without block cgroups or cgroups.
	hasBlkcg                       bool
	bioBlkg, blkgBlkcg, blkcgGroup int16
	hasCgroups                     bool
	taskCgroups, cssSetGroup       int16
	groupNode, nodeID              int16

	taskFlags, taskPID, taskCred, credUID int16

	bits flagBits
}

// flagBits are masks in a request's flags (REQ_*), whose numbers differ between kernels.
type flagBits struct{ readahead, meta, prio, background, sync uint32 }

// field is a field that the program reads. The kernel must have it in this size.
type field struct {
	at    *int16
	owner string // a struct
	path  string // a member, or a member of a member
	bytes int
}

func (l *layout) required() []field {
	return []field{
		{&l.rqQueue, "request", "q", 8},
		{&l.rqHctx, "request", "mq_hctx", 8},
		{&l.rqFlags, "request", "cmd_flags", 4},
		{&l.rqTag, "request", "tag", 4},
		{&l.rqBytes, "request", "__data_len", 4},
		{&l.rqSector, "request", "__sector", 8},
		{&l.rqBio, "request", "bio", 8},
		{&l.queueDisk, "request_queue", "disk", 8},
		{&l.diskName, "gendisk", "disk_name", diskNameBytes},
		{&l.hctxNumber, "blk_mq_hw_ctx", "queue_num", 4},
		{&l.bioPrio, "bio", "bi_ioprio", 2},
		{&l.bioHint, "bio", "bi_write_hint", 1},
		{&l.taskFlags, "task_struct", "flags", 4},
		{&l.taskPID, "task_struct", "tgid", 4},
		{&l.taskCred, "task_struct", "cred", 8},
		{&l.credUID, "cred", "uid.val", 4},
	}
}

func (l *layout) cgroups() []field {
	return []field{
		{&l.taskCgroups, "task_struct", "cgroups", 8},
		{&l.cssSetGroup, "css_set", "dfl_cgrp", 8},
		{&l.groupNode, "cgroup", "kn", 8},
		{&l.nodeID, "kernfs_node", "id", 8},
	}
}

func (l *layout) blkcg() []field {
	return []field{
		{&l.bioBlkg, "bio", "bi_blkg", 8},
		{&l.blkgBlkcg, "blkcg_gq", "blkcg", 8},
		{&l.blkcgGroup, "blkcg", "css.cgroup", 8},
	}
}

// errNoField is a field that the kernel does not have.
var errNoField = errors.New("no such field")

// newLayout looks everything up in a kernel's types.
func newLayout(types *btf.Spec) (*layout, error) {
	l := &layout{}
	if err := locateAll(types, l.required()); err != nil {
		return nil, err
	}
	var err error
	if l.hasCgroups, err = locateOptional(types, l.cgroups()); err != nil {
		return nil, err
	}
	if l.hasCgroups {
		if l.hasBlkcg, err = locateOptional(types, l.blkcg()); err != nil {
			return nil, err
		}
	}
	return l, l.bits.find(types)
}

func locateAll(types *btf.Spec, fields []field) error {
	for _, f := range fields {
		at, err := locate(types, f)
		if err != nil {
			return err
		}
		*f.at = at
	}
	return nil
}

// locateOptional is locateAll for fields that a kernel may be built without.
func locateOptional(types *btf.Spec, fields []field) (found bool, err error) {
	err = locateAll(types, fields)
	if errors.Is(err, errNoField) || errors.Is(err, btf.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// locate returns the offset of a field in its struct.
func locate(types *btf.Spec, f field) (int16, error) {
	var owner *btf.Struct
	if err := types.TypeByName(f.owner, &owner); err != nil {
		return 0, fmt.Errorf("the kernel's struct %s: %w", f.owner, err)
	}
	var typ btf.Type = owner
	offset := 0
	for name := range strings.SplitSeq(f.path, ".") {
		m, at := findMember(typ, name)
		if m == nil {
			return 0, fmt.Errorf("the kernel's struct %s, field %s: %w", f.owner, f.path, errNoField)
		}
		typ, offset = m.Type, offset+at
	}
	size, err := btf.Sizeof(typ)
	if err != nil {
		return 0, fmt.Errorf("the kernel's struct %s, field %s: %w", f.owner, f.path, err)
	}
	if size != f.bytes || offset > math.MaxInt16-size {
		return 0, fmt.Errorf("the kernel's struct %s, field %s: %d bytes at %d, expected are %d bytes",
			f.owner, f.path, size, offset, f.bytes)
	}
	return int16(offset), nil
}

// findMember looks for a member of a struct or union, also in unnamed ones within.
func findMember(typ btf.Type, name string) (*btf.Member, int) {
	var members []btf.Member
	switch t := btf.UnderlyingType(typ).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for i := range members {
		m := &members[i]
		at := int(m.Offset.Bytes())
		if m.Name == name && m.BitfieldSize == 0 {
			return m, at
		}
		if m.Name == "" {
			if in, inner := findMember(m.Type, name); in != nil {
				return in, at + inner
			}
		}
	}
	return nil, 0
}

// find looks the flags' bits up.
func (b *flagBits) find(types *btf.Spec) error {
	var enum *btf.Enum
	if err := types.TypeByName("req_flag_bits", &enum); err != nil {
		return fmt.Errorf("the kernel's enum req_flag_bits: %w", err)
	}
	numbers := map[string]uint64{}
	for _, v := range enum.Values {
		numbers[v.Name] = v.Value
	}
	for name, mask := range map[string]*uint32{
		"__REQ_RAHEAD": &b.readahead, "__REQ_META": &b.meta, "__REQ_PRIO": &b.prio,
		"__REQ_BACKGROUND": &b.background, "__REQ_SYNC": &b.sync,
	} {
		n, ok := numbers[name]
		if !ok || n > 31 {
			return fmt.Errorf("the kernel's enum req_flag_bits has no %s below 32", name)
		}
		*mask = 1 << n
	}
	return nil
}
