package cache

// NewUUID returns a random UUID.
func NewUUID() UUID { return newUUID() }

// SetIdentity replaces what is recorded of a backing device to recognise it by.
func (c *Cache) SetIdentity(id BackingID, i Identity) error {
	return c.change(id, func(r *BackingRecord) { r.Identity = i }, func(*Backing) {})
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
