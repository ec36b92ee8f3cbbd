/* What the stand-ins for NVIDIA's libraries share. */
#ifndef DEVICE_H
#define DEVICE_H

#define PUBLIC __attribute__((visibility("default")))

typedef void *Handle;

/* A line for whoever looks at what was done. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A line with the name of the thread that asks for what the next line says. */
void note_thread(void);

/* Where memory is read and written that lies at an address of the device or of the host. */
void *reach(const void *address);

int is_on_device(const void *address);

#endif
