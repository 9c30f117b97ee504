package vm

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"path/filepath"
)

// writeInitrd makes the initramfs: the guest's init and the modules it needs to see its disks.
func writeInitrd(name, init string, modules []string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w := &cpio{w: bufio.NewWriterSize(f, 1<<20)}
	// The kernel opens the console for init before init can mount devtmpfs.
	w.add("dev", 0o040755, 0, 0, nil)
	w.add("dev/console", 0o020600, 5, 1, nil)
	w.add("modules", 0o040755, 0, 0, nil)
	files := map[string]string{"init": init}
	for _, m := range modules {
		files[path.Join("modules", filepath.Base(m))] = m
	}
	for to, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("make initramfs: %w", err)
		}
		w.add(to, 0o100755, 0, 0, data)
	}
	w.add("TRAILER!!!", 0, 0, 0, nil)
	if w.err == nil {
		w.err = w.w.Flush()
	}
	return w.err
}

// cpio writes the "newc" format that the kernel unpacks.
type cpio struct {
	w     *bufio.Writer
	inode int
	bytes int
	err   error
}

func (c *cpio) add(name string, mode, major, minor int, data []byte) {
	c.inode++
	c.write([]byte(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpio) write(p []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(p)
		c.bytes += len(p)
	}
}

func (c *cpio) pad() { c.write(make([]byte, -c.bytes&3)) }
