// By what the memory server's process and whoever starts it find each other.

/** The control socket, in the run folder. */
export const MEMORY_SERVER_SOCKET = 'memserver.sock';
