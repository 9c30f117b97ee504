package cache

// NewUUID returns a random UUID.
func NewUUID() UUID { return newUUID() }

// SetIdentity replaces what is recorded of a backing device to recognise it by.
func (c *Cache) SetIdentity(id BackingID, i Identity) error {
	return c.change(id, func(r *BackingRecord) { r.Identity = i }, func(*Backing) {})
}

// SetPrint notes a fingerprint of a backing device, to be written by Close if it ends the cache in order.
func (c *Cache) SetPrint(id BackingID, f Fingerprint) error {
	c.control.Lock()
	defer c.control.Unlock()
	r, err := c.record(id)
	if err == nil {
		r.Print = f
	}
	return err
}

// SetHead notes the epoch that was written to a backing header; the next superblock has it. It is for
// Options.Confirm.
func (c *Cache) SetHead(id BackingID, epoch uint64) error {
	c.control.Lock()
	defer c.control.Unlock()
	r, err := c.record(id)
	if err == nil {
		r.Head = epoch
	}
	return err
}

// NoteUse notes, on the SSD, that a backing device is in use from now on, so that no fingerprint of it counts,
// and the epoch that its header has; 0: not known. It is for one that was missing when the cache was opened.
func (c *Cache) NoteUse(id BackingID, head uint64) error {
	return c.change(id, func(r *BackingRecord) { r.Print, r.Head = Fingerprint{}, head }, func(*Backing) {})
}

// CheckSize reports whether a device of that size can be formatted; bucketBytes as in
// FormatOptions.
func CheckSize(deviceBytes, bucketBytes int64) error {
	if bucketBytes == 0 {
		bucketBytes = defaultBucketBytes
	}
	_, err := planGeometry(deviceBytes, bucketBytes)
	return err
}
