package extents

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs/rules"
)

// Spec asks for the extents of a file, or of all files in a folder and in those in it, on a device.
// Symbolic links in the path are followed, those in the folder are not, and neither are mounts in it.
type Spec struct {
	// ID is the caller's name for it.
	ID   uint64
	Path string
	// Target is the device on which the extents are wanted; at it or below the filesystem.
	Target Device
}

// tree is what is known of a Spec. It belongs to the resolver's goroutine.
type tree struct {
	Spec
	watches *watches
	ask     *fiemap
	// root is the folder, or the one that the file is in. nil if the path leads nowhere.
	root   *folder
	real   string // the path without symbolic links
	device uint64 // of the filesystem
	inode  uint64 // of what the path leads to
	places mapping

	files     int
	unwatched int // folders that the kernel gives no watch for
	// unsettled files have data without a place on the device.
	unsettled map[*file]struct{}
	problem   error
	changed   bool // since the last report
}

// folder is a folder of a tree, or the one that a single file is in.
type folder struct {
	tree    *tree
	parent  *folder
	path    string
	only    string // if not empty, the only name that counts
	watch   int32  // 0: none
	files   map[string]*file
	folders map[string]*folder
}

// file is a regular file of a tree.
type file struct {
	in        *folder
	name      string
	stamp     stamp
	places    []rules.Range // on the target
	unsettled bool
}

// stamp changes when a file does.
type stamp struct {
	inode        uint64
	size, blocks int64
	mtime, ctime unix.Timespec
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{st.Ino, st.Size, st.Blocks, st.Mtim, st.Ctim}
}

// check finds out where the path leads to now, and begins anew if that is another place than before.
// It does not look at files yet; fresh says that somebody has to.
func (t *tree) check() (fresh bool) {
	real, st, err := t.locate()
	if err == nil && t.root != nil && real == t.real && st.Ino == t.inode && st.Dev == t.device {
		return false
	}
	t.forget()
	if err == nil {
		err = t.begin(real, st)
	}
	if err == nil {
		t.problem = nil
		return true
	}
	if t.problem == nil || t.problem.Error() != err.Error() {
		t.problem, t.changed = err, true
	}
	return false
}

func (t *tree) locate() (real string, st *unix.Stat_t, err error) {
	if real, err = filepath.EvalSymlinks(t.Path); err != nil {
		return "", nil, reason(err)
	}
	st = &unix.Stat_t{}
	return real, st, reason(unix.Lstat(real, st))
}

// reason is an error without the name of the path, which whoever reads it knows.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// begin makes the root of a tree whose path leads to real.
func (t *tree) begin(real string, st *unix.Stat_t) error {
	var sf unix.Statfs_t
	if err := unix.Statfs(real, &sf); err != nil {
		return err
	}
	places, err := mapTo(DeviceOf(st.Dev), t.Target)
	if err != nil {
		return err
	}
	if err := checkFilesystem(int64(sf.Type)); err != nil {
		return err
	}
	root := &folder{tree: t, path: real}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		root.path, root.only = filepath.Split(real)
		root.path = filepath.Clean(root.path)
	default:
		return errors.New("it is neither a file nor a folder")
	}
	t.root, t.real, t.device, t.inode, t.places = root, real, st.Dev, st.Ino, places
	t.changed = true
	return nil
}

// checkFilesystem lets in the filesystems whose FIEMAP tells places on the device, and which do not
// move data around by themselves.
func checkFilesystem(kind int64) error {
	switch kind {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC: // the first is that of ext2 and ext3 too
		return nil
	}
	name := fmt.Sprintf("its filesystem (of type %#x)", kind)
	if known := map[int64]string{
		unix.BTRFS_SUPER_MAGIC: "btrfs", unix.F2FS_SUPER_MAGIC: "f2fs", unix.NILFS_SUPER_MAGIC: "nilfs2",
		unix.MSDOS_SUPER_MAGIC: "vfat",
	}[kind]; known != "" {
		name = known
	}
	return fmt.Errorf("%s does not tell where on the device a file stays (ext2, ext3, ext4 and xfs do)",
		name)
}

// forget gives up all that is known.
func (t *tree) forget() {
	if t.root != nil {
		t.root.drop()
		t.root, t.changed = nil, true
	}
}

// drop gives up a folder and all in it.
func (d *folder) drop() {
	d.tree.watches.remove(d)
	for _, sub := range d.folders {
		sub.drop()
	}
	for name := range d.files {
		d.dropFile(name)
	}
	d.folders, d.files = nil, nil
}

// dropFile gives up a file, if it is known.
func (d *folder) dropFile(name string) {
	if f := d.files[name]; f != nil {
		delete(d.files, name)
		delete(d.tree.unsettled, f)
		d.tree.files--
		d.tree.changed = d.tree.changed || len(f.places) > 0
	}
}

func (d *folder) dropFolder(name string) {
	if sub := d.folders[name]; sub != nil {
		sub.drop()
		delete(d.folders, name)
	}
}

// scan looks at a folder and all in it. Files that have the stamp they had are left alone unless force
// is set. The watch comes first, so that what changes behind our back is told.
func (d *folder) scan(force bool) {
	d.tree.watches.add(d)
	if d.only != "" {
		d.look(d.only, force)
		return
	}
	entries, err := os.ReadDir(d.path)
	if err != nil { // gone, or not what it was: its parent will know
		entries = nil
	}
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Name()] = true
	}
	for name := range d.files {
		if !there[name] {
			d.dropFile(name)
		}
	}
	for name := range d.folders {
		if !there[name] {
			d.dropFolder(name)
		}
	}
	for _, e := range entries {
		if e.Type() != 0 && !e.IsDir() { // a link, a socket …
			d.dropFile(e.Name())
			d.dropFolder(e.Name())
			continue
		}
		if sub := d.look(e.Name(), force); sub != nil {
			sub.scan(force)
		}
	}
}

// look finds out what a name in the folder is by now, and where its data is if it is a file. It
// returns the folder of that name, if there is one, whose contents it does not look at.
func (d *folder) look(name string, force bool) *folder {
	if d.only != "" && name != d.only {
		return nil
	}
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(d.path, name), &st)
	kind := st.Mode & unix.S_IFMT
	if err != nil || st.Dev != d.tree.device {
		kind = 0
	}
	if kind != unix.S_IFREG {
		d.dropFile(name)
	}
	if kind != unix.S_IFDIR || d.only != "" {
		d.dropFolder(name)
	}
	switch {
	case kind == unix.S_IFREG:
		d.lookAtFile(name, &st, force)
	case kind == unix.S_IFDIR && d.only == "":
		sub := d.folders[name]
		if sub == nil {
			sub = &folder{tree: d.tree, parent: d, path: filepath.Join(d.path, name)}
			if d.folders == nil {
				d.folders = map[string]*folder{}
			}
			d.folders[name] = sub
		}
		return sub
	}
	return nil
}

func (d *folder) lookAtFile(name string, st *unix.Stat_t, force bool) {
	f := d.files[name]
	if f == nil {
		f = &file{in: d, name: name}
		if d.files == nil {
			d.files = map[string]*file{}
		}
		d.files[name] = f
		d.tree.files++
		force = true
	}
	if now := stampOf(st); force || now != f.stamp {
		f.stamp = now
		f.resolve()
	}
}

// settleAfter is how long a file must not have changed before what is only in memory is written out.
const settleAfter = 5 * time.Second

// resolve asks the filesystem where the file's data is.
func (f *file) resolve() {
	t := f.in.tree
	age := time.Since(time.Unix(f.stamp.mtime.Unix()))
	places, unsettled, err := f.ask(age > settleAfter)
	if err != nil {
		places, unsettled = nil, errors.Is(err, unix.EAGAIN)
	}
	if errors.Is(err, errNoFiemap) {
		t.problem = err
	}
	if !sameRanges(places, f.places) {
		f.places, t.changed = places, true
	}
	f.unsettled = unsettled
	if unsettled {
		t.unsettled[f] = struct{}{}
	} else {
		delete(t.unsettled, f)
	}
}

// ask asks the filesystem, and says where that is on the target.
func (f *file) ask(sync bool) (places []rules.Range, unsettled bool, err error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOATIME
	fd, err := unix.Open(filepath.Join(f.in.path, f.name), flags, 0)
	if err != nil {
		return nil, false, err
	}
	file := os.NewFile(uintptr(fd), f.name)
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, false, err
	}
	if st.Ino != f.stamp.inode || st.Dev != f.in.tree.device {
		return nil, false, errors.New("another file by now") // which will be told
	}
	if onRealtime(fd) {
		return nil, false, nil
	}
	own, unsettled, err := f.in.tree.ask.layout(file, sync)
	for _, r := range own {
		places = f.in.tree.places.translate(places, r)
	}
	return rules.Join(places), unsettled, err
}

func sameRanges(a, b []rules.Range) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// ranges joins the places of all files.
func (t *tree) ranges() []rules.Range {
	if t.root == nil {
		return nil
	}
	return rules.Join(t.root.collect(nil))
}

func (d *folder) collect(list []rules.Range) []rules.Range {
	for _, f := range d.files {
		list = append(list, f.places...)
	}
	for _, sub := range d.folders {
		list = sub.collect(list)
	}
	return list
}
